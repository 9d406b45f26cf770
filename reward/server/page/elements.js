// Elements made of plain text. Texts come from strangers: nothing here reads markup.

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes as they are called in HTML, children as elements or texts. */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Make a table in a box that scrolls; the first cell of each row names it. */
export function table(id, caption, header, rows) {
  const numbers = (place) => (header[place].number ? { class: "number" } : {});
  const head = header.map((one, place) => make("th", { scope: "col", ...numbers(place) }, one.name));
  const body = rows.map((cells) =>
    make("tr", {}, ...cells.map((cell, place) =>
      place ? make("td", numbers(place), cell) : make("th", { scope: "row" }, cell))));
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": id },
    make("table", {}, make("caption", { id }, make("span", {}, caption)), make("thead", {}, make("tr", {}, ...head)),
      make("tbody", {}, ...body)));
}

/** Make a number between 0 and 1 with a bar behind it. */
export function share(value) {
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  const inner = make("span");
  inner.style.width = `${(100 * value).toFixed(1)}%`;
  bar.append(inner);
  return make("span", { class: "share" }, bar, value.toFixed(2));
}

/** Show an error in its place, or hide the place. */
export function tell(place, error) {
  place.hidden = !error;
  place.textContent = error ? error.message : "";
}

/** Return a file's bytes in base64. */
export async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

/** Return what a person reads of a prompt or an answer: a text, or chat messages. */
export function words(chat) {
  if (chat === null || chat === undefined) return "";
  if (typeof chat === "string") return chat.trim();
  if (!Array.isArray(chat)) return String(chat);
  return chat.map((turn) => `${turn.role}: ${typeof turn.content === "string" ? turn.content : ""}`)
    .join("\n");
}

/** Return a beginning of a text. */
export const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Return an answer to look at: a text, or an image whose bytes are given in base64; browsers see
 * by the bytes themselves which format they have. */
export function shown(answer, isImage, name) {
  if (!isImage) return make("span", { class: "said" }, words(answer) || "(empty)");
  return make("img", { src: `data:image/png;base64,${answer}`, alt: name });
}
