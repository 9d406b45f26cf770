// What the page shows first, and the token where one is needed.

import { offerComparison } from "./compare.js";
import { byId, make, tell } from "./elements.js";
import { offerInterview } from "./interview.js";
import { ask, useToken } from "./server.js";

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token-value").value);
  open(true);
});
open(false);

/** Show the model, or ask for the token. */
async function open(isTried) {
  const error = byId("token-error");
  tell(error, null);
  try {
    await show(await ask("GET", "/v1/model"));
    byId("token").hidden = true;
    byId("token-value").value = "";
    if (isTried) byId("prompt").focus();
  } catch (refused) {
    byId("token").hidden = false;
    const isAsked = refused.status === 401 && !isTried;
    tell(error, isAsked ? null : refused.status === 401
      ? new Error("This is not the token of the server; try again.") : refused);
    if (isTried) byId("token-value").focus();
  }
}

async function show(model) {
  const kind = model.modality === "image" ? "images" : "texts";
  const people = model.users ? `${model.users.toLocaleString("en")} of the training` : "none";
  const facts = [
    ["run", model.run],
    ["head", `${model.head}, K = ${model.k}`],
    ["trained on", `${model.dataset}, ${kind}, ${model.view === "response"
      ? "answers read alone" : "answers read behind their prompts"}`],
    ["encoder", `${model.encoder}, revision ${model.revision}`],
    ["users", `${people}, ${model.adapted.toLocaleString("en")} adapted here`],
    ["reward of nobody in particular", { population: "the mean of all users", user: "one user" }[model.choice]
      || `one choice of ${model.choice}`],
    ["pal", model.version],
  ];
  byId("model-facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  byId("model-untrained").hidden = !model.untrained;
  const compareAs = offerComparison(model);
  await offerInterview(model, compareAs);
  for (const id of ["model", "compare", "interview"]) byId(id).hidden = false;
}
