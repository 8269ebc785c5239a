// Photos and masks: the strip, the photo that is open, clicks, strokes, undo, saving.
import {
  $, address, ask, attempt, complaints, debounced, el, folder, onFolder, pend, refresh, say, setFolder, tell,
} from "./common.js";
import { Mask } from "./mask.js";
import { View } from "./view.js";

const STATES = { none: "no mask", made: "mask made", hand: "touched by hand", problem: "problem" };
const DRAG = 5; // screen pixels; less is a click
const SLACK = 0.03; // of the photo's side, round a mask that clicks correct

const view = new View($("view"));
const sessions = new Map(); // by photo: what is open, or was and has more to undo
let open = null; // the session that is seen
let wanted = null; // the photo that is seen or is on its way
let tool = "click";
let down = null; // what the pointer does while it is down
let spaceHeld = false;
let segmenter = { problems: [], finds: true };

// --- a photo's session: its mask, what was clicked, and its history --------------------------

class Session {
  constructor(name, stamp, opened) {
    Object.assign(this, { name, stamp, size: opened.size, version: opened.version });
    this.mask = new Mask(...opened.size);
    this.mask.cut(opened.runs);
    this.points = [];
    this.box = opened.box ? widened(opened.box, opened.size) : null;
    this.note = "";
    this.touched = false;
    this.history = [this.snapshot()];
    this.at = this.saved = 0;
    this.asked = 0; // questions to the segmenter, so that a late answer is told from the last
    this.working = 0; // answers that will change the mask
    this.owed = false; // saving was asked for before the work was over
    this.saving = Promise.resolve(true); // the last save; the next one waits for its version
  }

  snapshot() {
    const { points, box, note, touched } = this;
    return { packed: this.mask.packed(), points: [...points], box, note, touched };
  }

  get dirty() {
    return this.at !== this.saved;
  }

  get unsaved() {
    return this.dirty || this.working > 0;
  }

  commit() {
    this.history.length = this.at + 1;
    if (this.saved > this.at) this.saved = -1;
    this.history.push(this.snapshot());
    this.at++;
    keepDraft(this);
  }

  go(step) {
    if (!this.history[this.at + step]) return;
    this.at += step;
    const { packed, points, box, note, touched } = this.history[this.at];
    this.mask.unpack(packed);
    Object.assign(this, { points: [...points], box, note, touched });
    this.asked++;
    keepDraft(this);
  }
}

const widened = ([left, top, right, bottom], [width, height], x = SLACK * width, y = SLACK * height) => [
  Math.max(0, Math.floor(left - x)), Math.max(0, Math.floor(top - y)),
  Math.min(width, Math.ceil(right + x)), Math.min(height, Math.ceil(bottom + y)),
];

// --- drafts: unsaved work waits in the browser -------------------------------------------------

const draftKey = (name) => `mudi ${folder.key} ${name}`;

function keepDraft(session) {
  const key = draftKey(session.name);
  if (!session.dirty) return localStorage.removeItem(key);
  const draft = { version: session.version, size: session.size, ...session.snapshot() };
  try {
    localStorage.setItem(key, JSON.stringify(draft));
  } catch (error) {
    say("this browser keeps no more unsaved work: save soon", true);
  }
}

function takeDraft(session) {
  let draft = null;
  try {
    draft = JSON.parse(localStorage.getItem(draftKey(session.name)));
  } catch (error) {
    localStorage.removeItem(draftKey(session.name));
  }
  if (!draft || String(draft.size) !== String(session.size)) return;
  session.version = draft.version; // if the file has changed since, saving will tell
  session.mask.unpack(draft.packed);
  const { points, box, note, touched } = draft;
  Object.assign(session, { points, box, note, touched });
  session.commit();
  say("unsaved strokes of this photo are back");
}

// --- opening and saving --------------------------------------------------------------------------

async function openPhoto(name) {
  if (wanted === name) return;
  wanted = name;
  const session = (await leave()) ? await attempt(() => load(name)) : null;
  if (wanted !== name) return; // another one was asked for meanwhile
  if (!session) {
    wanted = open?.name ?? null;
    return;
  }
  if (session === open) return; // asked for again, from another on its way
  for (const other of sessions.values()) if (other !== session) other.picture = null;
  open = session;
  $("conflict").hidden = true;
  view.open(session.picture, session.mask);
  show();
  for (const tile of $("strip").children) {
    const chosen = tile.dataset.photo === name;
    tile.setAttribute("aria-selected", String(chosen));
    if (chosen) tile.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  $("view").focus({ preventScroll: true });
  prepare(name);
}

async function load(name) {
  const entry = folder.photos.find((photo) => photo.name === name);
  const current = (session) => session?.stamp === entry.stamp && (session.unsaved || session.version === entry.version);
  if (!current(sessions.get(name))) {
    const opened = await ask("mask", { photo: name });
    if (!current(sessions.get(name))) {
      const session = new Session(name, entry.stamp, opened);
      if (opened.problem) say(opened.problem, true);
      takeDraft(session);
      sessions.set(name, session);
    }
  }
  const session = sessions.get(name);
  session.picture ??= await pend(picture(address("photo", { photo: name, stamp: entry.stamp })));
  return session;
}

// The first click of a photo waits for SAM's image encoder: let it begin when the photo stays open.
const prepare = debounced(async (name) => {
  if (open?.name !== name || !segmenter.finds || segmenter.problems.length) return;
  const told = setTimeout(() => note("prepare", "SAM looks at the photo; the first click waits for that"), 600);
  await tell("prepare", { photo: name }).catch(() => {}); // a click will tell what is wrong
  clearTimeout(told);
  note("prepare", "");
}, 300);

const notes = {};
function note(what, text) {
  notes[what] = text;
  $("easel-note").textContent = Object.values(notes).filter(Boolean).join(" ");
}

function picture(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("this photo cannot be shown: see what is said of it"));
    image.src = source;
  });
}

// Save a session, after what is being saved or cut for it.
function save(session = open, version) {
  if (!session) return true;
  session.owed = session.working > 0;
  return (session.saving = session.saving.then(() => write(session, version ?? session.version)));
}

async function write(session, version) {
  if (!session.dirty) return true;
  const snapshot = session.history[session.at];
  const values = {
    photo: session.name, version, note: session.note, touched: session.touched,
    box: session.box, runs: session.mask.runs(),
  };
  try {
    const saved = await tell("save", values);
    session.version = saved.version;
    session.saved = session.history.indexOf(snapshot); // -1: undone meanwhile, and drawn over
    keepDraft(session);
    setFolder(saved.folder);
    if (session === open) $("conflict").hidden = true;
    say(`saved ${session.name}`);
    show();
    return true;
  } catch (error) {
    if (error.changed && session === open) $("conflict").hidden = false;
    say(error.message, true);
    return false;
  }
}

// Save before another photo or tab is shown. Work that can't be saved stays in the session and in
// the browser, so one may go all the same, but for a conflict, which is to be seen.
export async function leave() {
  if (!open?.unsaved) return true;
  await save();
  return $("conflict").hidden;
}

async function takeTheirs() {
  const { name } = open;
  sessions.delete(name);
  localStorage.removeItem(draftKey(name));
  open = wanted = null;
  await refresh();
  await openPhoto(name);
}

async function keepMine() {
  await attempt(async () => {
    const { version } = await ask("mask", { photo: open.name });
    await save(open, version);
  });
}

// --- changing the mask ---------------------------------------------------------------------------

function changed(area) {
  view.changed(area);
  show();
}

// Change the mask by what is answered. Who went on to another photo meanwhile, or asked to save,
// finds it saved.
async function work(session, asked, change) {
  session.working++;
  const answer = await attempt(() => asked);
  session.working--;
  if (answer && change(answer) !== false) {
    session.commit();
    if (session === open) changed();
  }
  if (!session.working && (session.owed || session !== open)) await save(session);
}

async function segment(session, name, values, change) {
  const number = ++session.asked;
  note("segment", "…");
  const started = performance.now();
  const asked = tell(name, { photo: session.name, ...values }).finally(() => note("segment", ""));
  await work(session, asked, (answer) => {
    if (session.asked !== number) return false;
    session.mask.cut(answer.runs);
    change(answer);
    const took = ((performance.now() - started) / 1000).toFixed(2);
    say(`${answer.note || "cut"} in ${answer.seconds.toFixed(2)} s (${took} s in all)`);
  });
}

async function suggest() {
  const session = open;
  if (!session) return;
  const query = $("query").value.trim();
  await segment(session, "suggest", query ? { query } : {}, ({ box, note }) => {
    Object.assign(session, { box, points: [], note, touched: false });
  });
}

function cut(session) {
  const { points, box } = session;
  return segment(session, "cut", { points, box }, () => Object.assign(session, { note: "", touched: true }));
}

async function click(place, positive) {
  const session = open, x = Math.floor(place.x), y = Math.floor(place.y);
  session.points = [...session.points, [x, y, positive]];
  if (positive && session.box) {
    const [left, top, right, bottom] = session.box;
    if (x < left || y < top || x >= right || y >= bottom) {
      const grown = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), Math.max(bottom, y + 1)];
      session.box = widened(grown, session.size);
    }
  }
  view.marks.points = session.points;
  view.draw();
  await cut(session);
}

async function drawBox(from, to) {
  const [width, height] = open.size;
  const corners = [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.max(from.x, to.x), Math.max(from.y, to.y)];
  const inside = widened(corners, [width, height], 0, 0);
  if (inside[2] <= inside[0] || inside[3] <= inside[1]) return;
  open.box = inside;
  open.points = [];
  await cut(open);
}

async function tidy(what) {
  const session = open;
  if (!session) return;
  const asked = tell("tidy", { photo: session.name, what, runs: session.mask.runs() });
  await work(session, asked, ({ runs }) => {
    if (String(session.mask.runs()) === String(runs)) {
      say(what === "holes" ? "there are no holes" : "there are no islands");
      return false;
    }
    session.mask.correct(runs);
    session.touched = true;
  });
}

function clear() {
  if (!open) return;
  open.mask.clear();
  Object.assign(open, { points: [], box: null, note: "", touched: true });
  open.asked++;
  open.commit();
  changed();
}

function go(step) {
  if (!open) return;
  open.go(step);
  changed();
}

// --- the pointer ---------------------------------------------------------------------------------

const radius = () => Number($("brush-size").value) / 2;

$("view").addEventListener("pointerdown", (event) => {
  if (!open) return;
  $("view").setPointerCapture(event.pointerId);
  const at = view.at(event), screen = { x: event.clientX, y: event.clientY };
  const moves = event.button === 1 || spaceHeld;
  const doing = moves ? "move" : tool === "click" ? "click" : "stroke";
  down = { doing, from: at, last: at, screen, negative: event.button === 2 || event.shiftKey };
  if (doing === "stroke") stroke(at, at, event);
  event.preventDefault();
  $("view").focus({ preventScroll: true });
});

$("view").addEventListener("pointermove", (event) => {
  if (!open) return;
  const at = view.at(event);
  if (tool !== "click") {
    view.marks.brush = { ...at, radius: radius() };
    view.draw();
  }
  if (!down) return;
  if (down.doing === "move") {
    view.move(event.clientX - down.screen.x, event.clientY - down.screen.y);
    down.screen = { x: event.clientX, y: event.clientY };
  } else if (down.doing === "stroke") stroke(down.last, at, event);
  else if (dragged(event)) {
    view.marks.dragged = [down.from.x, down.from.y, at.x, at.y];
    view.draw();
  }
  if (down) down.last = at;
});

$("view").addEventListener("pointerup", async (event) => {
  if (!down || !open) return;
  const { doing, from, negative } = down, at = view.at(event), wasDragged = dragged(event);
  down = null;
  view.marks.dragged = null;
  if (doing === "stroke") {
    open.touched = true;
    open.commit();
    show();
  } else if (doing === "click") {
    if (wasDragged && !negative) await drawBox(from, at);
    else if (view.contains(from)) await click(from, !negative);
  }
  view.draw();
});

$("view").addEventListener("pointerleave", () => {
  view.marks.brush = null;
  view.draw();
});
$("view").addEventListener("contextmenu", (event) => event.preventDefault());
$("view").addEventListener("wheel", (event) => {
  event.preventDefault();
  view.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 12 : 400)), event);
}, { passive: false });

const dragged = (event) => Math.hypot(event.clientX - down.screen.x, event.clientY - down.screen.y) > DRAG;

function stroke(from, to, event) {
  const adds = (tool === "brush") !== (event.shiftKey || event.buttons === 2);
  view.changed(open.mask.stroke(from, to, radius(), adds));
}

// --- what is seen --------------------------------------------------------------------------------

function show() {
  if (!open) return;
  const entry = folder.photos.find((photo) => photo.name === open.name);
  view.marks.points = open.points;
  view.marks.box = tool === "click" ? open.box : null;
  view.draw();
  $("photo-name").textContent = open.name;
  const state = entry ? STATES[entry.state] : "gone";
  const subject = entry?.subject ? folder.names[entry.subject] || `subject ${entry.subject}` : "nobody's yet";
  $("photo-state").textContent = `${subject}, ${open.dirty ? "not saved" : state}`;
  $("photo-state").dataset.state = open.dirty ? "unsaved" : entry?.state;
  $("save").disabled = !open.dirty;
  $("undo").disabled = open.at === 0;
  $("redo").disabled = open.at === open.history.length - 1;
  complaints($("photo-complaints"), [...segmenter.problems, ...(entry?.problems ?? [])], entry?.warnings);
  for (const tile of $("strip").children) {
    if (tile.dataset.photo === open.name) tile.dataset.unsaved = String(open.dirty);
  }
}

function tile(photo) {
  const source = address("thumbnail", { photo: photo.name, stamp: photo.stamp });
  const made = el("button", { class: "tile", role: "option", title: photo.name, onclick: () => openPhoto(photo.name) },
    el("img", { src: source, alt: "", loading: "lazy" }),
    el("span", { class: "name" }, photo.name),
    el("span", { class: "state" }, STATES[photo.state]));
  made.dataset.photo = photo.name;
  return made;
}

onFolder((state) => {
  const strip = $("strip"), names = state.photos.map((photo) => photo.name);
  const seen = [...strip.children].map((child) => child.dataset.photo);
  if (String(seen) !== String(names)) strip.replaceChildren(...state.photos.map(tile));
  for (const photo of state.photos) {
    const made = strip.children[names.indexOf(photo.name)];
    made.dataset.state = photo.state;
    made.dataset.unsaved = String(Boolean(sessions.get(photo.name)?.dirty));
    made.querySelector(".state").textContent = STATES[photo.state];
    made.setAttribute("aria-selected", String(photo.name === open?.name));
  }
  show();
});

function neighbour(step) {
  const names = folder.photos.map((photo) => photo.name);
  const next = names[names.indexOf(wanted) + step];
  return next === undefined ? attempt(() => leave()) : openPhoto(next);
}

function choose(name) {
  tool = name;
  for (const other of ["click", "brush", "eraser"]) {
    $(`tool-${other}`).setAttribute("aria-checked", String(other === name));
  }
  $("view").dataset.tool = name;
  view.marks.brush = null;
  view.marks.box = name === "click" && open ? open.box : null;
  view.draw();
}

function size(by) {
  $("brush-size").value = Math.round(Number($("brush-size").value) * by) + (by > 1 ? 1 : 0);
  $("brush-size").dispatchEvent(new Event("input"));
}

function maskOnly() {
  view.maskOnly = !view.maskOnly;
  $("show-mask").setAttribute("aria-pressed", String(view.maskOnly));
  view.draw();
}

$("brush-size").addEventListener("input", () => {
  $("brush-told").textContent = `${$("brush-size").value} px`;
  if (view.marks.brush) view.marks.brush.radius = radius();
  view.draw();
});

const actions = {
  suggest, undo: () => go(-1), redo: () => go(1), clear, save: () => save(), next: () => neighbour(1),
  fit: () => view.fit(), holes: () => tidy("holes"), islands: () => tidy("islands"), "show-mask": maskOnly,
  "tool-click": () => choose("click"), "tool-brush": () => choose("brush"), "tool-eraser": () => choose("eraser"),
  "take-theirs": takeTheirs, "keep-mine": keepMine,
};
for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
$("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter") suggest();
});

const keys = {
  g: suggest, c: actions["tool-click"], b: actions["tool-brush"], e: actions["tool-eraser"],
  f: actions.holes, i: actions.islands, s: actions.save, m: maskOnly, 0: actions.fit,
  "[": () => size(0.8), "]": () => size(1.25), "+": () => view.zoom(1.25), "=": () => view.zoom(1.25),
  "-": () => view.zoom(0.8), ArrowRight: () => neighbour(1), ArrowLeft: () => neighbour(-1),
  ArrowDown: () => neighbour(1), ArrowUp: () => neighbour(-1),
};
const withControl = { z: () => go(-1), y: () => go(1), s: actions.save };

export function key(event) {
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.key === " " && event.target.tagName !== "BUTTON") spaceHeld = true;
  else if (event.ctrlKey && name === "z" && event.shiftKey) go(1);
  else if (event.ctrlKey && withControl[name]) withControl[name]();
  else if (!event.ctrlKey && keys[name]) keys[name]();
  else return;
  event.preventDefault();
}
document.addEventListener("keyup", (event) => {
  if (event.key === " ") spaceHeld = false;
});

export async function enter() {
  segmenter = (await attempt(() => ask("segmenter"))) ?? segmenter;
  $("query").hidden = !segmenter.finds; // on a plain background there is nothing to look for
  if (!open && folder.photos.length) {
    const first = folder.photos.find((photo) => photo.state === "none") ?? folder.photos[0];
    await openPhoto(first.name);
  }
  note("empty", folder.photos.length ? "" : "There are no photos in this folder.");
  view.resize();
  show();
}

choose("click");
