// What training sees: collages by its own code for the flags given, and its command.
import { $, address, ask, attempt, complaints, copied, debounced, el, folder } from "./common.js";

const choice = (name, text, options) => ({ name, text, options });
const FIELDS = [
  choice("style", "Base model", [["sdxl", "SDXL"], ["flux", "FLUX"], ["klein", "FLUX.2-klein"], ["zimage", "Z-Image"]]),
  choice("in_order", "Show", [["", "collages"], ["true", "the run's draws"]]),
  { name: "segmix_prob", text: "segmix_prob", value: "0.3", title: "how often a photo becomes a collage" },
  { name: "segmix_num_subjects", text: "segmix_num_subjects", value: "2", title: "subjects a collage" },
  { name: "relative_scale", text: "relative_scale", value: "0", title: "fixed sizes of two subjects; 0: random" },
  { name: "subject_scales", text: "subject_scales", value: "", placeholder: "a=1 b=0.6", title: "fixed sizes of all subjects" },
  { name: "resolution", text: "resolution", value: "1024", title: "side of the training images (px)" },
  choice("mix", "mix", [["segmix", "segmix"], ["cutmix", "cutmix, the baseline"]]),
  { name: "random_flip", text: "random_flip", type: "checkbox" },
];
const USUAL = { sdxl: "1024", flux: "512", klein: "512", zimage: "1024" }; // the resolution, as long as nobody chose one

const inputs = {};
let drawn = "";

function field(wanted) {
  const made = wanted.options
    ? el("select", {}, ...wanted.options.map(([value, text]) => el("option", { value }, text)))
    : el("input", { type: wanted.type ?? "text", value: wanted.value ?? "", placeholder: wanted.placeholder ?? "" });
  made.id = `flag-${wanted.name}`;
  inputs[wanted.name] = made;
  return el("label", { title: wanted.title ?? "" }, el("span", {}, wanted.text), made);
}

function values() {
  const given = { seed: $("collage-seed").value.trim() || "0" };
  for (const [name, input] of Object.entries(inputs)) {
    const value = input.type === "checkbox" ? String(input.checked) : input.value.trim();
    if (value !== "") given[name] = value;
  }
  return given;
}

async function draw() {
  const given = values(), state = JSON.stringify([given, folder.photos.map((photo) => [photo.version, photo.text]), folder.names]);
  if (state === drawn) return;
  drawn = state;
  let answer;
  try {
    answer = await ask("collages", given);
  } catch (error) {
    complaints($("collage-problem"), error.message.split("\n"));
    $("tiles").replaceChildren();
    drawn = "";
    return;
  }
  if (drawn !== state) return;
  complaints($("collage-problem"), []);
  $("command").textContent = answer.command;
  $("collage-title").textContent = given.in_order ? "The first draws of a run with this seed" : "Collages";
  $("tiles").replaceChildren(...answer.prompts.map(({ prompt, mixed }, number) =>
    el("figure", { class: "tile" },
      el("img", { src: address("collage", { ...given, number }), alt: prompt }),
      el("figcaption", {}, mixed ? null : el("i", {}, "photo: "), prompt))));
  $("tiles").dataset.seed = given.seed;
}

const drawSoon = debounced(draw, 300);

function step(by) {
  $("collage-seed").value = Math.max(0, Number($("collage-seed").value || 0) + by);
  draw();
}

$("flags").append(...FIELDS.map(field));
$("flags").addEventListener("input", drawSoon);
$("flags").addEventListener("submit", (event) => event.preventDefault());
inputs.style.addEventListener("change", () => {
  if (Object.values(USUAL).includes(inputs.resolution.value)) inputs.resolution.value = USUAL[inputs.style.value];
});
$("collage-seed").addEventListener("input", drawSoon);
$("seed-back").addEventListener("click", () => step(-1));
$("seed-on").addEventListener("click", () => step(1));
$("copy-command").addEventListener("click", () => copied($("command").textContent));

export function key(event) {
  if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
}

export const enter = () => attempt(draw);
