// Answers to one prompt, compared as several people.

import { base64, byId, cut, make, share, shown, table, tell } from "./elements.js";
import { ask } from "./server.js";

const MOST_ANSWERS = 8;
const letter = (number) => String.fromCharCode(65 + number);

/** Offer the form; returns a function that adds a person and compares again. */
export function offerComparison(model) {
  const isImage = model.modality === "image";
  const answers = byId("answers");
  answers.replaceChildren();

  function addAnswer() {
    const name = letter(answers.children.length);
    const id = `answer-${name}`;
    const input = isImage
      ? make("input", { id, type: "file", accept: "image/*", required: true })
      : make("textarea", { id, rows: "2", required: true });
    answers.append(make("div", { class: "field" }, make("label", { for: id }, `Answer ${name}`), input));
    byId("answer-add").hidden = answers.children.length === MOST_ANSWERS;
    return input;
  }
  addAnswer();
  addAnswer();
  byId("answer-add").addEventListener("click", () => addAnswer().focus());

  offerPeople(model);
  const compare = () => run(isImage);
  byId("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    compare();
  });
  return {
    async compareAs(name) {
      addUser(name);
      const isFilled = [...answers.querySelectorAll("input, textarea")].every((one) => one.value);
      if (isFilled) await compare();
      return isFilled;
    },
    removeUser,
    /** Fill the empty form with a pair of the data: people see how prompts and answers are written. */
    suggest({ prompt, first, second }) {
      if (isImage || [prompt, first, second].some((one) => typeof one !== "string")) return;
      [byId("prompt").value, byId("answer-A").value, byId("answer-B").value] = [prompt, first, second];
    },
  };
}

function offerPeople(model) {
  const choices = [["nobody", model.choice === "population" ? "Anybody: all users of the training"
    : "Whoever the export is for", true]];
  for (let k = 0; k < Math.min(model.mixes, 16); k += 1) {
    if (model.mixes > 1) choices.push([`prototype-${k}`, `Prototype ${k} alone`, true]);
  }
  byId("whose").replaceChildren(...choices.map(([value, name, checked]) => {
    const id = `whose-${value}`;
    const box = make("input", { type: "checkbox", id, value, checked });
    return make("div", {}, box, make("label", { for: id }, name));
  }));
  byId("known").hidden = !model.names.length;
  byId("known-user").replaceChildren(...model.names.map((name) => make("option", { value: name }, name)));
  byId("known-add").addEventListener("click", () => addUser(byId("known-user").value));
}

const typed = () => byId("users").value.split("\n").map((line) => line.trim()).filter((line) => line);

function addUser(name) {
  if (!typed().includes(name)) byId("users").value = [...typed(), name].join("\n");
}

function removeUser(name) {
  byId("users").value = typed().filter((one) => one !== name).join("\n");
}

/** Return who is chosen: what to show, and what to send. */
function people() {
  const boxes = [...byId("whose").querySelectorAll("input:checked")];
  const chosen = boxes.map((box) => {
    const k = box.value.startsWith("prototype-") ? box.value.slice("prototype-".length) : null;
    return { name: box.nextElementSibling.textContent, user: k === null ? null : { [k]: 1 } };
  });
  return [...chosen, ...typed().map((user) => ({ name: user, user }))];
}

async function run(isImage) {
  const result = byId("compare-result");
  tell(byId("compare-error"), null);
  try {
    const whose = people();
    if (!whose.length) throw new Error("Choose whose preferences: tick a box or type a user.");
    const inputs = [...byId("answers").querySelectorAll("input, textarea")];
    const answers = await Promise.all(inputs.map((one) => (isImage ? base64(one.files[0]) : one.value)));
    const prompt = byId("prompt").value || null;
    const found = answers.length === 2
      ? await probabilities(prompt, answers, whose) : await orders(prompt, answers, whose);
    result.replaceChildren(legend(answers, isImage), found);
  } catch (error) {
    result.replaceChildren();
    tell(byId("compare-error"), error);
  }
}

function legend(answers, isImage) {
  return make("ul", { class: "legend" }, ...answers.map((answer, n) =>
    make("li", {}, make("strong", {}, `${letter(n)} `),
      shown(isImage ? answer : cut(answer, 200), isImage, `Answer ${letter(n)}`))));
}

async function probabilities(prompt, [first, second], whose) {
  const each = (value) => whose.map(() => value);
  const reply = await ask("POST", "/v1/compare", {
    prompts: each(prompt), first: each(first), second: each(second), users: whose.map((one) => one.user),
  });
  const header = [{ name: "who" }, { name: "prefers A", number: true }, { name: "in words" }];
  const rows = whose.map((one, n) => [one.name, share(reply.p[n]), inWords(reply.p[n])]);
  return make("div", {}, table("compared", "How probably each prefers answer A to answer B", header, rows),
    strangers(reply.unknown_users));
}

function inWords(p) {
  if (Math.abs(p - 0.5) < 0.05) return "hardly any difference";
  const sure = Math.abs(p - 0.5) > 0.4 ? "almost certainly" : Math.abs(p - 0.5) > 0.2 ? "probably" : "rather";
  return `${sure} ${p > 0.5 ? "A" : "B"}`;
}

async function orders(prompt, answers, whose) {
  const rows = whose.flatMap((one) => answers.map((answer) => ({ answer, user: one.user })));
  const reply = await ask("POST", "/v1/score", {
    prompts: rows.map(() => prompt), responses: rows.map((row) => row.answer), users: rows.map((row) => row.user),
  });
  const why = Object.values(reply.errors)[0];
  if (why) throw new Error(`An answer has no reward: ${why}`);
  const header = [{ name: "who" }, ...answers.map((_, n) => ({ name: letter(n), number: true })), { name: "order" }];
  const lines = whose.map((one, n) => {
    const rewards = reply.rewards.slice(n * answers.length, (n + 1) * answers.length);
    const place = (reward) => 1 + rewards.filter((other) => other > reward).length;
    const order = rewards.map((reward, m) => [reward, letter(m)]).sort((a, b) => b[0] - a[0]);
    return [one.name, ...rewards.map((reward) => String(place(reward))), order.map((both) => both[1]).join(" › ")];
  });
  return make("div", {}, table("compared", "The place of each answer for each person, 1 is liked best", header, lines),
    strangers(reply.unknown_users / answers.length));
}

function strangers(count) {
  if (!count) return "";
  const who = count === 1 ? "One of these users is" : `${count} of these users are`;
  return make("p", { class: "hint" }, `${who} not known to the model and counted as a stranger.`);
}
