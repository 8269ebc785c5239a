// What all tabs share: asking the server, making elements, telling the user, the folder's state.

export class Problem extends Error {
  constructor(message, status, changed) {
    super(message);
    this.status = status;
    this.changed = changed; // what was to be replaced is no longer there
  }
}

let pending = 0; // pieces of work that are not over: body[data-pending]
export async function pend(work) {
  document.body.dataset.pending = String(++pending);
  try {
    return await work;
  } finally {
    document.body.dataset.pending = String(--pending);
  }
}

async function exchange(name, options, read) {
  let reply;
  try {
    reply = await fetch(name, options);
  } catch (error) {
    document.getElementById("gone").hidden = false;
    throw new Problem("the server does not answer", 0, false);
  }
  if (!reply.ok) {
    const told = await reply.json().catch(() => ({}));
    if (reply.status === 403) document.getElementById("gone").hidden = false;
    throw new Problem(told.problem || `error ${reply.status}`, reply.status, Boolean(told.changed));
  }
  document.getElementById("gone").hidden = true;
  return read(reply);
}

const json = (reply) => reply.json();

export const address = (name, values) => `${name}?${new URLSearchParams(values)}`;

export const ask = (name, values = {}) => pend(exchange(address(name, values), undefined, json));

function post(name, values, read) {
  const headers = { "Content-Type": "application/json" };
  return pend(exchange(name, { method: "POST", headers, body: JSON.stringify(values) }, read));
}

export const tell = (name, values) => post(name, values, json);

export const tellForPicture = (name, values) => post(name, values, (reply) => reply.blob());

export const $ = (id) => document.getElementById(id);

// el("p", {class: "hint", onclick: f}, "text", other): text is text, never markup.
export function el(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list" && name !== "role") made[name] = value;
    else if (name === "class") made.className = value;
    else if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...content.filter((part) => part !== null && part !== undefined));
  return made;
}

let fading;
export function say(text, bad = false) {
  const line = $("status");
  line.textContent = text;
  line.className = bad ? "bad" : "";
  clearTimeout(fading);
  if (!bad) fading = setTimeout(() => (line.textContent = ""), 6000);
}

// Run a piece of work; what goes wrong is told.
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    say(error.message, true);
    return undefined;
  }
}

export function complaints(list, problems, warnings = []) {
  list.replaceChildren(
    ...problems.map((text) => el("li", { class: "problem" }, text)),
    ...warnings.map((text) => el("li", { class: "warning" }, text)),
  );
}

const listeners = [];
export let folder = { photos: [], names: {}, problems: [], warnings: [], folder: "", key: "" };
export const onFolder = (listener) => listeners.push(listener);
export function setFolder(state) {
  folder = state;
  for (const listener of listeners) listener(state);
}
export const refresh = () => attempt(async () => setFolder(await ask("folder")));

export const typing = (event) => event.target.closest("input:not([type=range]), textarea, select");

export function copied(text) {
  return attempt(async () => {
    await navigator.clipboard.writeText(text);
    say("copied");
  });
}

export function debounced(work, wait) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), wait);
  };
}
