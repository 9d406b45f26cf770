// What is expected of somebody at each question, and how the order of the questions changed.

import { cut, make, share, shown, table, words } from "./elements.js";

const AFFIRMING = ["agree", "yes", "true", "approve", "like", "good", "1"];
const AT_EACH_END = 5;
const MOST_WEIGHTS = 12;

/** Return what to show of a reply of /v1/interview; `isOpen`: all questions, not only the ends. */
export function ranking(questions, reply, isImage, isOpen) {
  const common = commonAnswer(questions, isImage);
  const begin = commonBeginning(questions);
  const rows = questions.map((one, n) => {
    const isFirst = common === null ? reply.p_before[n] >= 0.5 : words(one.first) === common;
    const [before, now] = [reply.p_before[n], reply.p[n]].map((p) => (isFirst ? p : 1 - p));
    return { one, before, now, preferred: isFirst ? one.first : one.second };
  });
  for (const [by, place] of [["before", "was"], ["now", "is"]]) {
    [...rows].sort((a, b) => b[by] - a[by]).forEach((row, n) => { row[place] = n + 1; });
  }
  rows.sort((a, b) => a.is - b.is);
  const header = [
    { name: common === null ? "question, and the answer that more people prefer" : "question" },
    { name: "chance now", number: true }, { name: "before", number: true },
    { name: "place", number: true }, { name: "was", number: true }, { name: "your answer" },
  ];
  const cells = (row) => [
    named(row, common === null, begin, isImage), share(row.now), row.before.toFixed(2),
    String(row.is), moved(row), told(row.one, isImage),
  ];
  const chance = common === null ? "The chance that this person prefers the answer that more people prefer"
    : `The chance that this person answers “${common}”`;
  const isLong = rows.length > 2 * AT_EACH_END;
  const ends = rows.filter((row) => !isLong || row.is <= AT_EACH_END || row.is > rows.length - AT_EACH_END);
  const which = isLong ? `: the ${AT_EACH_END} highest and the ${AT_EACH_END} lowest` : "";
  return [
    make("h3", {}, "What is expected of this person"),
    make("p", {}, basis(questions, reply.weights)),
    table("ranked", `${chance}, now and before any answer${which}`, header, ends.map(cells)),
    isLong ? make("details", { open: isOpen }, make("summary", {}, `All ${rows.length} questions`),
      table("ranked-all", `${chance}, all questions`, header, rows.map(cells))) : "",
  ];
}

function basis(questions, weights) {
  const count = questions.filter((one) => one.label !== null).length;
  const numbers = weights.slice(0, MOST_WEIGHTS).map((weight) => weight.toFixed(2)).join(", ");
  return `After ${count} ${count === 1 ? "answer" : "answers"}; this person's numbers in the model are `
    + `${numbers}${weights.length > MOST_WEIGHTS ? ", …" : ""}.`;
}

function named({ one, preferred }, withAnswer, begin, isImage) {
  const prompt = cut(words(one.prompt).slice(begin.length), 160);
  if (!withAnswer) return prompt || "(no prompt)";
  if (isImage) return make("span", {}, `${prompt} `, shown(preferred, true, "The answer that more people prefer"));
  return prompt ? `${prompt} → ${cut(words(preferred), 160)}` : cut(words(preferred), 160);
}

/** Return the affirming one of the two answers that all questions have, null where they differ. */
function commonAnswer(questions, isImage) {
  const found = new Set(questions.flatMap((one) => [words(one.first), words(one.second)]));
  if (isImage || found.size !== 2) return null;
  const [one, other] = [...found].sort();
  return AFFIRMING.includes(one.toLowerCase()) ? one : other;
}

/** Return the line that all prompts begin with, which tells no question from another. */
function commonBeginning(questions) {
  const prompts = questions.map((one) => words(one.prompt));
  const begin = prompts[0].slice(0, prompts[0].indexOf("\n") + 1);
  return prompts.length > 1 && prompts.every((prompt) => prompt.startsWith(begin)) ? begin : "";
}

function moved({ was, is }) {
  if (was === is) return `${was} =`;
  return is < was ? `${was} ▲${was - is}` : `${was} ▼${is - was}`;
}

function told(one, isImage) {
  if (one.label === null) return "";
  if (one.label === 0.5) return "no difference";
  if (isImage) return one.label === 1 ? "the first" : "the second";
  return cut(words(one.label === 1 ? one.first : one.second), 40);
}
