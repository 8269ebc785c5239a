// Tabs: which is seen, and keys that go to the one that is.
import { $, onFolder, refresh, typing } from "./common.js";
import * as photos from "./photos.js";
import * as captions from "./captions.js";
import * as collages from "./collages.js";
import * as layout from "./layout.js";
import * as results from "./results.js";

const tabs = { photos, captions, collages, layout, results };
let seen = null;

async function show(name) {
  if (seen === name) return;
  if (seen && tabs[seen].leave) await tabs[seen].leave();
  seen = name;
  for (const other of Object.keys(tabs)) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).setAttribute("aria-selected", String(other === name));
    $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
  }
  history.replaceState(null, "", `#${name}`);
  await tabs[name].enter();
}

for (const name of Object.keys(tabs)) $(`tab-${name}`).addEventListener("click", () => show(name));

document.addEventListener("keydown", (event) => {
  const names = Object.keys(tabs);
  if (event.target.role === "tab" && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const step = event.key === "ArrowLeft" ? names.length - 1 : 1;
    const next = names[(names.indexOf(seen) + step) % names.length];
    show(next);
    $(`tab-${next}`).focus();
    event.preventDefault();
    return;
  }
  if (typing(event) || event.altKey || event.metaKey) return;
  if (!event.ctrlKey && /^[1-5]$/.test(event.key)) show(names[Number(event.key) - 1]);
  else if (tabs[seen]?.key) tabs[seen].key(event);
});

onFolder((state) => {
  $("folder").textContent = state.folder;
  document.title = `${state.folder} · MuDI studio`;
});

await refresh();
const wanted = location.hash.slice(1);
await show(wanted in tabs ? wanted : "photos");
document.body.dataset.ready = "yes";
