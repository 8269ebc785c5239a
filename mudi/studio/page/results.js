// Results: pictures with their boxes and verdicts, kept or rejected by a key.
import { $, address, ask, attempt, el, say, tell } from "./common.js";

const WORDS = { true: "kept", false: "rejected", null: "open" };

let pictures = [];
let seen = []; // names in the order that they are shown
let chosen = null;

const ORDERS = {
  name: (a, b) => a.name.localeCompare(b.name),
  worst: (a, b) => (a.score ?? -1) - (b.score ?? -1),
  best: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  verdict: (a, b) => String(a.verdict).localeCompare(String(b.verdict)),
  open: (a, b) => (a.keep !== null) - (b.keep !== null),
};

function boxed(picture, source) {
  const boxes = picture.boxes.map(({ box: [left, top, right, bottom], label, colour }) => {
    const tag = el("b", {}, label);
    tag.style.background = colour;
    const made = el("span", { class: "box" }, tag);
    Object.assign(made.style, {
      left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
      borderColor: colour,
    });
    return made;
  });
  return el("div", { class: "boxed" }, el("img", { src: source, alt: picture.prompt ?? picture.name, loading: "lazy" }), ...boxes);
}

function told(picture) {
  if (picture.problem) return picture.problem;
  return Object.entries(picture.scores).map(([name, [score, verdict]]) => `${name} ${score.toFixed(3)}, ${verdict}`).join("; ");
}

function tile(picture) {
  const made = el("figure", { class: "tile result", role: "option", tabindex: -1, onclick: () => choose(picture.name), ondblclick: enlarge },
    boxed(picture, address("result_small", { picture: picture.name })),
    el("figcaption", {},
      el("span", { class: "row" }, el("strong", {}, picture.verdict ?? picture.name), el("em", {}, WORDS[picture.keep])),
      el("small", {}, picture.verdict ? `${picture.name}: ${told(picture)}` : picture.problem ?? picture.prompt ?? "")));
  made.dataset.picture = picture.name;
  made.dataset.keep = WORDS[picture.keep];
  if (picture.verdict) made.dataset.verdict = picture.verdict === "good" ? "good" : "bad";
  return made;
}

function show() {
  const wanted = $("show").value;
  const rows = pictures.filter((picture) => !wanted || picture.verdict === wanted).sort(ORDERS[$("sort").value]);
  seen = rows.map((picture) => picture.name);
  $("pictures").replaceChildren(...rows.map(tile));
  const decided = pictures.filter((picture) => picture.keep !== null);
  const kept = decided.filter((picture) => picture.keep).length;
  $("results-title").textContent = `${pictures.length} pictures, ${kept} kept, ${decided.length - kept} rejected`;
  if (seen.length) choose(seen.includes(chosen) ? chosen : seen[0]);
}

function choose(name) {
  chosen = name;
  for (const made of $("pictures").children) {
    const own = made.dataset.picture === name;
    made.setAttribute("aria-selected", String(own));
    if (own) made.scrollIntoView({ block: "nearest" });
  }
  if ($("large").open) enlarge();
}

function step(by) {
  const next = seen[seen.indexOf(chosen) + by];
  if (next !== undefined) choose(next);
}

const columns = () => {
  const tiles = [...$("pictures").children];
  return Math.max(1, tiles.filter((made) => made.offsetTop === tiles[0].offsetTop).length);
};

async function decide(now) {
  const picture = pictures.find((other) => other.name === chosen);
  if (!picture) return;
  try {
    await tell("keep", { picture: picture.name, was: picture.keep, now });
    picture.keep = now;
    const made = [...$("pictures").children].find((other) => other.dataset.picture === picture.name);
    made.dataset.keep = WORDS[now];
    made.querySelector("em").textContent = WORDS[now];
    const decided = pictures.filter((other) => other.keep !== null);
    const kept = decided.filter((other) => other.keep).length;
    $("results-title").textContent = `${pictures.length} pictures, ${kept} kept, ${decided.length - kept} rejected`;
    step(1);
  } catch (error) {
    say(error.message, true);
    if (error.changed) await enter();
  }
}

function enlarge() {
  const picture = pictures.find((other) => other.name === chosen);
  if (!picture) return;
  $("large").querySelector(".boxed")?.remove();
  $("large-image").hidden = true;
  $("large").querySelector("figure").prepend(boxed(picture, address("result", { picture: picture.name })));
  $("large-told").textContent = [picture.name, WORDS[picture.keep], told(picture), picture.prompt].filter(Boolean).join(" · ");
  if (!$("large").open) $("large").showModal();
}

for (const id of ["sort", "show"]) $(id).addEventListener("change", () => {
  chosen = null; // then the first
  show();
  $(id).blur(); // keys are for the pictures again
});
$("large").addEventListener("click", () => $("large").close());

const keys = {
  k: () => decide(true), x: () => decide(false), u: () => decide(null),
  ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  ArrowDown: () => step(columns()), ArrowUp: () => step(-columns()),
  Enter: () => ($("large").open ? $("large").close() : enlarge()),
};

export function key(event) {
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || !keys[name]) return;
  event.preventDefault();
  keys[name]();
}

export async function enter() {
  const answer = await attempt(() => ask("results"));
  if (!answer) return;
  pictures = answer.pictures;
  if (!answer.given) {
    $("results-title").textContent = "No pictures were given";
    $("results-hint").textContent = "Start the page with --results PICTURES, a folder that inference.py wrote, and --scores, what python -m detect_and_compare made of it.";
    return;
  }
  const verdicts = [...new Set(pictures.map((picture) => picture.verdict).filter(Boolean))].sort();
  const before = $("show").value;
  $("show").replaceChildren(el("option", { value: "" }, "all"), ...verdicts.map((value) => el("option", { value }, value)));
  $("show").value = verdicts.includes(before) ? before : "";
  show();
}
