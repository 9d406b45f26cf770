// Questions to a new person: each step asks the server which one tells most, and shows what changed.

import { byId, make, shown, tell, words } from "./elements.js";
import { ranking } from "./ranking.js";
import { ask } from "./server.js";

/** Offer the interview; `comparison` compares as a person who was kept. */
export async function offerInterview(model, comparison) {
  if (!model.adapts) {
    const none = byId("interview-none");
    none.hidden = false;
    none.textContent = model.users === 0
      ? "This export holds one fixed reward, so nobody can be added; export the population to add people."
      : `Head ${model.head} is the same for everybody, so there is nobody to get to know.`;
    byId("interview-whole").hidden = true;
    return;
  }
  const { questions } = await ask("GET", "/v1/questions");
  new Interview(model, comparison).use(questions, "pairs of the data, as the server was started");
  if (questions.length) comparison.suggest(questions[0]);
}

class Interview {
  constructor(model, comparison) {
    this.isImage = model.modality === "image";
    this.comparison = comparison;
    this.kept = null;
    byId("interview-start").addEventListener("click", () => this.start());
    byId("question-tie").addEventListener("click", () => this.answer(0.5));
    byId("question-skip").addEventListener("click", () => this.skip());
    byId("questions-file").addEventListener("change", (event) => this.read(event.target.files[0]));
    byId("keep-forget").addEventListener("click", () => this.forget());
    byId("keep-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep(byId("keep-name").value.trim());
    });
  }

  /** Take questions; their labels are forgotten. */
  use(questions, source) {
    this.pool = questions.map(({ prompt, first, second }) => ({ prompt: prompt ?? null, first, second }));
    const count = this.pool.length;
    byId("interview-source").textContent = count
      ? `${count} questions: ${source}.`
      : "The server has no questions to ask: start it with --set serve.questions=FILE, or choose a file of yours below.";
    byId("interview-start").disabled = !count;
    for (const id of ["question", "keep"]) byId(id).hidden = true;
    byId("ranking").replaceChildren();
  }

  async read(file) {
    tell(byId("interview-error"), null);
    if (!file) return;
    try {
      const lines = (await file.text()).split("\n").filter((line) => line.trim());
      this.use(lines.map((line, n) => question(line, n + 1)), file.name);
    } catch (error) {
      tell(byId("interview-error"), error);
    }
  }

  start() {
    this.questions = this.pool.map((one) => ({ ...one, label: null }));
    this.places = null;
    this.kept = null;
    byId("keep-forget").hidden = true;
    byId("keep-told").textContent = "";
    byId("interview-start").textContent = "Start again";
    return this.step();
  }

  answer(label) {
    this.questions[this.next].label = label;
    return this.step();
  }

  skip() {
    this.questions.splice(this.next, 1);
    this.places = null;
    return this.questions.length ? this.step() : this.end("No question is left.");
  }

  get answered() {
    return this.questions.filter((one) => one.label !== null).length;
  }

  /** Ask the server what the answers so far tell, and show the next question. */
  async step() {
    const buttons = [...byId("interview-whole").querySelectorAll("button")];
    tell(byId("interview-error"), null);
    for (const one of buttons) one.disabled = true;
    try {
      const reply = await ask("POST", "/v1/interview", { questions: this.questions });
      this.next = reply.next;
      const wasOpen = byId("ranking").querySelector("details[open]") !== null;
      byId("ranking").replaceChildren(...ranking(this.questions, reply, this.isImage, wasOpen));
      byId("keep").hidden = !this.answered;
      if (reply.next === null) this.end("All questions are answered.");
      else this.show(this.questions[reply.next]);
    } catch (error) {
      tell(byId("interview-error"), error);
    } finally {
      for (const one of buttons) one.disabled = false;
    }
    if (!byId("question").hidden) byId("question-title").focus();
  }

  show(one) {
    byId("question").hidden = false;
    byId("question-title").textContent = `Question ${this.answered + 1} of at most ${this.questions.length}`;
    byId("question-prompt").textContent = words(one.prompt);
    const sides = [["first", 1, "1"], ["second", 0, "2"]];
    byId("question-answers").replaceChildren(...sides.map(([side, label, name]) =>
      make("button", { type: "button", class: "choice", onclick: () => this.answer(label) },
        make("span", { class: "hidden" }, `Answer ${name}: `),
        shown(one[side], this.isImage, `Answer ${name}`))));
  }

  end(told) {
    byId("question").hidden = true;
    byId("keep-told").textContent = told;
  }

  async keep(name) {
    tell(byId("interview-error"), null);
    const answers = this.questions.filter((one) => one.label !== null).map(({ prompt, first, second, label }) =>
      ({ prompt, chosen: first, rejected: second, label }));
    try {
      await ask("POST", `/v1/users/${encodeURIComponent(name)}/adapt`, { answers });
      this.kept = name;
      byId("keep-forget").hidden = false;
      const isCompared = await this.comparison.compareAs(name);
      byId("keep-told").textContent = isCompared
        ? `${name} is known now; the comparison above is done again with ${name}.`
        : `${name} is known now and stands among the users of the comparison above.`;
    } catch (error) {
      tell(byId("interview-error"), error);
    }
  }

  async forget() {
    try {
      await ask("DELETE", `/v1/users/${encodeURIComponent(this.kept)}`);
      this.comparison.removeUser(this.kept);
      byId("keep-told").textContent = `${this.kept} is forgotten.`;
      byId("keep-forget").hidden = true;
    } catch (error) {
      tell(byId("interview-error"), error);
    }
  }
}

/** Return a question of a line of JSON. */
function question(line, number) {
  let row = null;
  try {
    row = JSON.parse(line);
  } catch {
    throw new Error(`Line ${number} is no JSON; write one object a line.`);
  }
  const [first, second] = [row?.first ?? row?.chosen, row?.second ?? row?.rejected];
  if (first === undefined || second === undefined) {
    throw new Error(`Line ${number} lacks first or second; give both answers.`);
  }
  return { prompt: row.prompt ?? null, first, second };
}
