// Names and captions, with what the checker says beside each photo. Captions are written as they are
// typed; a name, which goes into many of them, when its field is left or by Enter.
import { $, address, ask, attempt, complaints, debounced, el, folder, onFolder, refresh, say, setFolder, tell } from "./common.js";

const PAUSE = 400; // ms without a key, after which what was typed of a caption is written

const cards = new Map(); // by photo
let names = null;
let can = { captions: false };

const lines = (text) => (Array.isArray(text) ? text : [text ?? ""]);
const shown = (text) => lines(text).join("\n");

// A text box that writes itself when it is left, or also `pause` ms after a key: `write(was, now)`
// returns the folder's new state.
class Field {
  constructor(input, value, write, pause = null) {
    Object.assign(this, { input, write, was: value, busy: Promise.resolve() });
    const later = pause === null ? () => {} : debounced(() => this.save(), pause);
    input.addEventListener("input", () => {
      this.held = false;
      input.dataset.state = "typing";
      later();
    });
    input.addEventListener("change", () => this.save());
  }

  // One write after the other, each of what is there by then.
  save() {
    this.busy = this.busy.then(() => this.saveNow());
    return this.busy;
  }

  async saveNow() {
    const now = this.input.value;
    if (now === shown(this.was)) return this.told("");
    if (this.held) return this.told("refused");
    try {
      setFolder(await this.write(this.was, now));
      this.told("");
    } catch (error) {
      this.held = true; // until more is typed: nothing is replaced unseen
      say(error.changed ? `${error.message}; type on to replace it` : error.message, true);
      if (error.changed) await refresh();
      this.told("refused");
    }
  }

  told(state) {
    this.input.dataset.state = this.input.value === shown(this.was) ? "" : state || "typing";
  }

  // What the server has; typed text that is not written yet stays.
  update(value) {
    const untouched = this.input.value === shown(this.was);
    this.was = value;
    if (untouched && this.input.value !== shown(value)) this.input.value = shown(value);
    this.told("");
  }
}

function card(photo) {
  const text = el("textarea", { rows: 2, value: shown(photo.text), "aria-label": `Caption of ${photo.name}` });
  const subject = el("select", { "aria-label": `Subject of ${photo.name}` });
  const told = el("ul", { class: "complaints" });
  const suggest = el("button", { hidden: true }, "Suggest");
  const made = el("article", { class: "card" },
    el("img", { src: address("thumbnail", { photo: photo.name, stamp: photo.stamp }), alt: "", loading: "lazy" }),
    el("div", {}, el("div", { class: "row" }, el("strong", {}, photo.name), subject, suggest), text, told));
  made.dataset.photo = photo.name;
  const write = (was, now) => tell("caption", { photo: photo.name, was, now: now.split("\n") });
  const field = new Field(text, photo.text, write, PAUSE);
  const own = { made, field, subject, told, suggest, photo };
  suggest.addEventListener("click", () => suggestFor(own));
  subject.addEventListener("change", () => attempt(async () => {
    setFolder(await tell("subject", { photo: photo.name, was: own.photo.subject, now: subject.value }));
  }));
  return own;
}

async function suggestFor(own) {
  own.suggest.disabled = true;
  own.suggest.textContent = "asking…";
  await attempt(async () => {
    const { caption } = await tell("suggest_caption", { photo: own.photo.name });
    own.field.input.value = caption;
    await own.field.save();
  });
  own.suggest.disabled = false;
  own.suggest.textContent = "Suggest";
}

const isPlain = (photo) => photo.listed && shown(photo.text) === `A photo of a ${folder.names[photo.subject]}.`;

$("suggest-captions").addEventListener("click", async () => {
  for (const own of cards.values()) if (!shown(own.photo.text) || isPlain(own.photo)) await suggestFor(own);
});

function update(own, photo) {
  own.photo = photo;
  own.field.update(photo.text);
  own.field.input.disabled = !photo.listed;
  own.field.input.placeholder = photo.listed ? "" : "comes with the mask, and with whose photo it is";
  own.suggest.hidden = !can.captions || !photo.listed;
  own.made.dataset.state = photo.problems.length ? "problem" : photo.warnings.length ? "warning" : "";
  const options = Object.entries(folder.names).map(([id, name]) => el("option", { value: id }, `${id}: ${name}`));
  if (!(photo.subject in folder.names)) options.unshift(el("option", { value: "" }, "whose?"));
  own.subject.replaceChildren(...options);
  own.subject.value = photo.subject in folder.names ? photo.subject : "";
  complaints(own.told, photo.problems, photo.warnings);
}

function showNames(state) {
  const ids = Object.keys(state.names);
  if (!names || String(ids) !== String(names.map((own) => own.id))) {
    names = ids.map((id) => {
      const input = el("input", { value: state.names[id], "aria-label": `Name of ${id}`, autocomplete: "off" });
      const field = new Field(input, state.names[id], (was, now) => tell("name", { id, was, now }));
      return { id, field, made: el("label", {}, el("b", {}, id), input) };
    });
    $("names").replaceChildren(...names.map((own) => own.made), newSubject(ids));
  }
  for (const own of names) own.field.update(state.names[own.id]);
}

function newSubject(ids) {
  const free = [..."abcdefghijklmnopqrstuvwxyz"].find((letter) => !ids.includes(letter)) ?? "";
  const id = el("input", { value: free, class: "id", "aria-label": "Id of a new subject", autocomplete: "off" });
  const name = el("input", { placeholder: "rare word and noun", "aria-label": "Name of a new subject", autocomplete: "off" });
  const add = () => attempt(async () => setFolder(await tell("name", { id: id.value, was: null, now: name.value })));
  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter") add();
  });
  return el("span", { class: "new" }, id, name, el("button", { onclick: add, id: "add-subject" }, "Add subject"));
}

onFolder((state) => {
  showNames(state);
  complaints($("general"), state.problems, state.warnings);
  const there = state.photos.map((photo) => photo.name);
  if (String(there) !== String([...cards.keys()])) {
    cards.clear();
    for (const photo of state.photos) cards.set(photo.name, card(photo));
    $("caption-list").replaceChildren(...[...cards.values()].map((own) => own.made));
  }
  for (const photo of state.photos) update(cards.get(photo.name), photo);
});

export async function enter() {
  can = (await attempt(() => ask("captioner"))) ?? can;
  $("suggest-captions").hidden = !can.captions;
  await refresh();
}

export async function leave() {
  await Promise.all([...(names ?? []), ...cards.values()].map((own) => own.field.save()));
}
