// Elements, texts and calls of the service.

export const { words, language, languages, client } = window.framepack;

/** A text of the page, with its {places} filled in. */
export function say(name, values = {}) {
  return words[name].replace(/\{(\w+)\}/g, (_, place) => values[place]);
}

/** An element: its properties, listeners as onclick, and what is in it. Texts never become HTML. */
export function make(kind, properties = {}, ...inside) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...inside.filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

/** Put children into an element, only if that changes anything. */
export function fill(element, ...children) {
  const wanted = children.filter((child) => child !== null && child !== undefined && child !== false);
  const there = [...element.childNodes];
  if (there.length === wanted.length && there.every((child, index) => child === wanted[index])) return;
  element.replaceChildren(...wanted);
}

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

const ICONS = {
  up: "M12 5l7 8h-5v6h-4v-6H5z",
  down: "M12 19l-7-8h5V5h4v6h5z",
  pause: "M7 5h4v14H7zM13 5h4v14h-4z",
  resume: "M7 5l12 7-12 7z",
  cancel: "M6.4 5L5 6.4 10.6 12 5 17.6 6.4 19 12 13.4 17.6 19 19 17.6 13.4 12 19 6.4 17.6 5 12 10.6z",
};

/** A round button with a picture, named for those who do not see it. */
export function icon(name, onclick) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  const label = say(name);
  return make("button", { type: "button", className: "icon", title: label, ariaLabel: label, name, onclick }, svg);
}

export function duration(seconds) {
  if (seconds < 90) return say("time_s", { n: Math.max(1, Math.round(seconds)) });
  if (seconds < 5400) return say("time_min", { n: Math.round(seconds / 60) });
  return say("time_h", { n: (seconds / 3600).toFixed(1) });
}

/** One line for the reader, for as long as it takes to read. */
export function tell(line) {
  const place = document.querySelector("#told");
  text(place, line);
  place.hidden = false;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => { place.hidden = true; }, 7000);
}

/** Call the API; a refusal is told in its own words. Gives what was answered, or null. */
export async function call(method, path, body) {
  try {
    const answer = await fetch(`v1/${path}`, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const told = await answer.json();
    if (answer.ok) return told;
    tell(told.error.message);
  } catch {
    tell(say("lost"));
  }
  return null;
}

/** A question in a dialog with fields; gives their values by name, or null. */
export function ask({ title, how, fields = [], yes, danger = false, picture = null }) {
  return new Promise((resolve) => {
    const controls = fields.map(({ name, label, ...properties }) => {
      const control = make(properties.rows ? "textarea" : "input", { name, ...properties });
      const check = properties.type === "checkbox";
      return make("label", { className: check ? "check" : "" }, ...(check ? [control, label] : [label, control]));
    });
    const form = make(
      "form",
      { method: "dialog" },
      make("h2", {}, title),
      picture && make("img", { src: picture, alt: "" }),
      make("p", {}, how),
      ...controls,
      make(
        "div",
        { className: "answers" },
        make("button", { type: "button", onclick: () => dialog.close() }, say("back")),
        make("button", { type: "submit", className: danger ? "danger" : "main", value: "yes" }, yes),
      ),
    );
    const dialog = make("dialog", { className: "question" }, form);
    dialog.addEventListener("close", () => {
      const values = Object.fromEntries([...new FormData(form)]);
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? values : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
