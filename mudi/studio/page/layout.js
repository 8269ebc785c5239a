// Layout: cut-outs dragged on a canvas. What lies on it is the server's own collage; while a subject
// is dragged its cut-out follows the pointer, then the collage is made anew.
import { $, address, ask, attempt, complaints, copied, debounced, el, say, tell, tellForPicture } from "./common.js";

const SMALLEST = 0.04; // of the canvas, a box's side
const NUDGE = 0.01;
const GAMMA = 0.4; // SDXL's usual one

let scene = null; // subjects, their photos, what the server can do
let visits = 0; // of the tab; masks may be others by the next
let layout = null; // {boxes, front_to_back, photos} by subject's id
let version = ""; // of the file that was opened
let opened = ""; // its name
let commanded = ""; // the wish whose command is shown
let chosen = null;
let gammas = {};
let waiting = 0; // collages that are asked for
let following = null;

const size = () => ({ width: Number($("width").value), height: Number($("height").value) });
const seed = () => Number($("layout-seed").value || 0);

// By names, as a layout file has it.
function named() {
  const name = (id) => scene.names[id];
  const photos = Object.entries(layout.photos).filter(([, photo]) => photo);
  return {
    boxes: Object.fromEntries(Object.entries(layout.boxes).map(([id, box]) => [name(id), box])),
    front_to_back: layout.front_to_back.map(name),
    photos: Object.fromEntries(photos.map(([id, photo]) => [name(id), photo])),
  };
}

function wish() {
  const gamma = Object.fromEntries(layout.front_to_back.map((id) => [id, gammas[id] ?? GAMMA]));
  return { prompt: $("prompt").value, ...size(), seed: seed(), gamma, layout: named() };
}

// A command is seen while it makes what the page would draw.
function forgetCommand() {
  $("layout-command").hidden = $("copy-layout").hidden = JSON.stringify(wish()) !== commanded;
}

const rounded = (value) => Math.round(Math.min(1, Math.max(0, value)) * 1e4) / 1e4;

// --- the canvas ------------------------------------------------------------------------------------

async function redraw() {
  const number = ++waiting;
  forgetCommand();
  try {
    const picture = await tellForPicture("start", wish());
    if (number !== waiting) return;
    const old = $("start").src;
    $("start").src = URL.createObjectURL(picture);
    await $("start").decode();
    if (old) URL.revokeObjectURL(old);
    complaints($("layout-problem"), []);
    $("stage").dataset.shown = JSON.stringify(wish());
    for (const ghost of $("stage").querySelectorAll(".actor img")) ghost.hidden = true;
  } catch (error) {
    complaints($("layout-problem"), error.message.split("\n"));
  }
}

const redrawSoon = debounced(redraw, 60);

function place() {
  const { width, height } = size();
  $("stage").style.aspectRatio = `${width} / ${height}`;
  $("stage").style.setProperty("--aspect", String(width / height));
  const actors = layout.front_to_back.map((id, depth) => actor(id, layout.front_to_back.length - depth));
  for (const old of $("stage").querySelectorAll(".actor")) old.remove();
  $("stage").append(...actors);
}

function actor(id, depth) {
  const [left, top, right, bottom] = layout.boxes[id];
  const ghost = el("img", { alt: "", draggable: false, hidden: true });
  if (layout.photos[id]) ghost.src = address("cutout", { subject: id, photo: layout.photos[id], visits });
  const made = el("div", { class: "actor", tabindex: 0, role: "button", "aria-label": scene.names[id] },
    ghost, el("span", { class: "label" }, scene.names[id]), el("span", { class: "corner" }));
  made.dataset.subject = id;
  Object.assign(made.style, { zIndex: depth, borderColor: scene.colours[id] });
  made.querySelector(".label").style.background = scene.colours[id];
  position(made, [left, top, right, bottom]);
  made.classList.toggle("chosen", id === chosen);
  made.addEventListener("focus", () => choose(id));
  made.addEventListener("pointerdown", (event) => grab(event, id, made));
  return made;
}

function position(made, [left, top, right, bottom]) {
  Object.assign(made.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
}

// Shrink a box to what its cut-out fills: bottom and middle stay, and so does the collage.
function fit(id, ghost) {
  if (!ghost.naturalWidth) return;
  const { width, height } = size(), [left, top, right, bottom] = layout.boxes[id];
  const wide = (right - left) * width, high = (bottom - top) * height;
  const scale = Math.min(wide / ghost.naturalWidth, high / ghost.naturalHeight);
  const half = (scale * ghost.naturalWidth) / width / 2, middle = (left + right) / 2;
  layout.boxes[id] = [middle - half, bottom - (scale * ghost.naturalHeight) / height, middle + half, bottom].map(rounded);
}

function grab(event, id, made) {
  fit(id, made.querySelector("img"));
  const corner = event.target.classList.contains("corner");
  following = { id, made, corner, x: event.clientX, y: event.clientY, box: [...layout.boxes[id]] };
  made.setPointerCapture(event.pointerId);
  made.onpointermove = follow;
  made.onpointerup = made.onpointercancel = release;
  choose(id);
  made.focus();
  event.preventDefault();
}

function follow(event) {
  const stage = $("stage").getBoundingClientRect();
  const x = (event.clientX - following.x) / stage.width, y = (event.clientY - following.y) / stage.height;
  const [left, top, right, bottom] = following.box;
  if (following.corner) {
    const grown = Math.max(1 + x / (right - left), 1 + y / (bottom - top), SMALLEST / (right - left));
    const factor = Math.min(grown, (1 - left) / (right - left), (1 - top) / (bottom - top));
    resizeTo(following.id, [left, top, left + factor * (right - left), top + factor * (bottom - top)]);
  }
  else moveTo(following.id, left + x, top + y);
  position(following.made, layout.boxes[following.id]);
  following.made.querySelector("img").hidden = false;
}

function release() {
  following.made.onpointermove = following.made.onpointerup = null;
  following = null;
  redraw();
}

function moveTo(id, left, top) {
  const [oldLeft, oldTop, right, bottom] = layout.boxes[id];
  const width = right - oldLeft, height = bottom - oldTop;
  left = Math.min(1 - width, Math.max(0, left));
  top = Math.min(1 - height, Math.max(0, top));
  layout.boxes[id] = [left, top, left + width, top + height].map(rounded);
}

function resizeTo(id, [left, top, right, bottom]) {
  layout.boxes[id] = [left, top, Math.max(left + SMALLEST, right), Math.max(top + SMALLEST, bottom)].map(rounded);
}

function choose(id) {
  chosen = id;
  for (const made of document.querySelectorAll("#stage .actor, #cast .role")) {
    made.classList.toggle("chosen", made.dataset.subject === id);
  }
}

// --- the list of subjects --------------------------------------------------------------------------

function cast() {
  $("cast").replaceChildren(...layout.front_to_back.map((id, depth) => {
    const photo = el("select", { "aria-label": `Photo of ${scene.names[id]}`, onchange: () => {
      layout.photos[id] = photo.value;
      place();
      redraw();
    } }, ...scene.photos[id].map((name) => el("option", { value: name }, name)));
    photo.value = layout.photos[id] ?? "";
    const gamma = el("input", { value: gammas[id] ?? GAMMA, inputmode: "decimal", "aria-label": `Gamma of ${scene.names[id]}`, onchange: () => {
      const number = Number(gamma.value);
      if (Number.isFinite(number)) gammas[id] = number;
      gamma.value = gammas[id] ?? GAMMA;
      forgetCommand();
    } });
    const forward = el("button", { disabled: depth === 0, title: "one to the front", onclick: () => order(id, -1) }, "↑");
    const back = el("button", { disabled: depth === layout.front_to_back.length - 1, title: "one to the back", onclick: () => order(id, 1) }, "↓");
    const swatch = el("i", { class: "swatch" });
    swatch.style.background = scene.colours[id];
    const made = el("div", { class: "role", onclick: () => choose(id) },
      el("div", { class: "row" }, swatch, el("strong", {}, scene.names[id]), forward, back),
      el("div", { class: "row" }, photo, el("label", {}, "γ ", gamma)));
    made.dataset.subject = id;
    made.classList.toggle("chosen", id === chosen);
    return made;
  }));
}

function order(id, step) {
  const row = layout.front_to_back, at = row.indexOf(id);
  const to = Math.min(row.length - 1, Math.max(0, at + step));
  row.splice(to, 0, ...row.splice(at, 1));
  take(layout);
}

// --- layouts from the server -----------------------------------------------------------------------

function take(given) {
  layout = given;
  for (const id of Object.keys(layout.boxes)) layout.photos[id] ??= scene.photos[id][0];
  if (!(chosen in layout.boxes)) chosen = layout.front_to_back[0];
  place();
  cast();
  return redraw();
}

async function shuffle(name = "shuffled") {
  const photos = layout?.photos ?? {};
  try {
    const given = await tell(name, { prompt: $("prompt").value, ...size(), seed: seed() });
    for (const id of Object.keys(given.boxes)) given.photos[id] ??= photos[id];
    await take(given);
    return true;
  } catch (error) {
    complaints($("layout-problem"), error.message.split("\n"));
    if (layout) forgetCommand();
    return false;
  }
}

async function askModel() {
  $("ask-model").disabled = true;
  say("asking…");
  if (await shuffle("ask")) say("the chat model's layout");
  $("ask-model").disabled = false;
}

function open() {
  return attempt(async () => {
    const name = $("layout-name").value.trim();
    const given = await ask("layout", { name });
    version = given.version;
    opened = name;
    await take({ boxes: given.boxes, front_to_back: given.front_to_back, photos: given.photos });
    say(`opened ${name}`);
  });
}

async function save() {
  const name = $("layout-name").value.trim();
  if (!name) return say("give the layout a name", true);
  return attempt(async () => {
    const replaced = name === opened ? version : "", wanted = wish();
    const saved = await tell("layout", { name, version: replaced, ...wanted });
    version = saved.version;
    opened = name;
    showFiles(saved.files);
    $("layout-command").textContent = saved.command;
    commanded = JSON.stringify(wanted);
    forgetCommand();
    say(`saved ${name}`);
  });
}

const showFiles = (names) => $("layout-files").replaceChildren(...names.map((value) => el("option", { value })));

// --- drawing ---------------------------------------------------------------------------------------

async function draw() {
  $("draw").disabled = true;
  await attempt(async () => {
    await tell("draw", wish());
    let busy = true;
    while (busy) {
      const { pictures } = await ask("drawn");
      showDrawn(pictures);
      busy = pictures.some((picture) => !picture.done && !picture.problem);
      if (busy) await new Promise((resolve) => setTimeout(resolve, 250));
    }
  });
  $("draw").disabled = false;
}

const frames = new Map();

function showDrawn(pictures) {
  for (const picture of pictures) {
    if (!frames.has(picture.number)) {
      const made = el("figure", {},
        el("img", { src: address("drawn_start", { number: picture.number }), alt: "start" }),
        el("div", { class: "result" }, el("progress", { max: 1, value: 0 }), el("span", {}, "loading the model…")),
        el("figcaption", {}, `seed ${picture.seed}: ${picture.prompt}`));
      made.dataset.number = picture.number;
      frames.set(picture.number, made);
      $("drawn").prepend(made);
      made.scrollIntoView({ block: "nearest", behavior: "smooth" });
    }
    const result = frames.get(picture.number).querySelector(".result");
    if (picture.done && !result.querySelector("img")) {
      const source = address("drawn_picture", { number: picture.number });
      result.replaceChildren(el("a", { href: source, download: `layout_${picture.number}.png` }, el("img", { src: source, alt: "result" })));
    } else if (picture.problem) result.replaceChildren(el("p", { class: "problem" }, picture.problem));
    else if (picture.steps) {
      result.querySelector("progress").value = picture.step / picture.steps;
      result.querySelector("span").textContent = `step ${picture.step} of ${picture.steps}`;
    }
  }
}

// --- events ----------------------------------------------------------------------------------------

const replan = debounced(() => shuffle(), 500);
$("prompt").addEventListener("input", replan);
for (const id of ["width", "height"]) $(id).addEventListener("change", () => {
  if (layout) {
    place();
    redraw();
  }
});
$("layout-seed").addEventListener("change", () => shuffle());
$("shuffle").addEventListener("click", () => {
  $("layout-seed").value = seed() + 1;
  shuffle();
});
$("ask-model").addEventListener("click", askModel);
$("open-layout").addEventListener("click", open);
$("save-layout").addEventListener("click", save);
$("draw").addEventListener("click", draw);
$("copy-layout").addEventListener("click", () => copied($("layout-command").textContent));

export function key(event) {
  if (event.ctrlKey || !layout || !chosen) return;
  const [left, top, right, bottom] = layout.boxes[chosen];
  const far = event.shiftKey ? 5 : 1;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const grows = { "+": 1, "=": 1, "-": -1 }[event.key];
  const name = event.key.toLowerCase();
  if (moves) moveTo(chosen, left + far * NUDGE * moves[0], top + far * NUDGE * moves[1]);
  else if (grows) {
    const x = (grows * NUDGE * (right - left)) / (bottom - top), y = grows * NUDGE;
    resizeTo(chosen, [Math.max(0, left - x / 2), top - y, right + x / 2, bottom]);
  } else if (name === "f") return order(chosen, -layout.front_to_back.length);
  else if (name === "r") return $("shuffle").click();
  else if (name === "s") return save();
  else if (name === "d" && !$("draw").hidden && !$("draw").disabled) return draw();
  else return;
  event.preventDefault();
  position($("stage").querySelector(`[data-subject="${CSS.escape(chosen)}"]`), layout.boxes[chosen]);
  redrawSoon();
}

export async function enter() {
  try {
    scene = await ask("scene");
    visits += 1;
  } catch (error) {
    complaints($("layout-problem"), error.message.split("\n"));
    return;
  }
  $("ask-model").hidden = !scene.asks;
  $("draw").hidden = !scene.draws;
  showFiles(scene.files);
  if (!$("prompt").value) $("prompt").value = scene.prompt;
  const known = layout && Object.keys(layout.boxes).every((id) => id in scene.names);
  if (known) await take(layout);
  else await shuffle();
}
