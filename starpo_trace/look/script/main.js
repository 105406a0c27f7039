// What the reader does: filters, links, keys.

const { texts, trajectories } = JSON.parse(document.getElementById("data").textContent);
const meanings = JSON.parse(document.getElementById("meanings").textContent);
const form = document.getElementById("filters"), list = document.getElementById("list");
const story = document.getElementById("story"), help = document.getElementById("help");
const byId = new Map(trajectories.map((trajectory) => [trajectory.trajectory_id, trajectory]));
let found = [], current = null, step = null;

function refresh() {
  const keeps = makeFilter(form, texts);
  found = trajectories.filter(keeps).sort(SORTS[form.elements.sort.value][1]);
  list.replaceChildren(...found.map((trajectory) => trajectory.item ??= makeItem(trajectory)));
  document.getElementById("found").textContent = `${number(found.length)} of ${number(trajectories.length)} on this page`;
}

function readHash() { // #t=ID or #t=ID/ENTRY; a bare #ID too, unless it names a part of the page
  const hash = location.hash.slice(1);
  if (!hash || document.getElementById(hash)) return;
  const link = hash.startsWith("t=") ? hash.slice(2) : hash, [, id, entry] = link.match(/^(.*)\/(\d+)$/) ?? [];
  if (id !== undefined && byId.has(decode(id))) open(decode(id), Number(entry) - 1);
  else open(decode(link), null); // written by hand, where a slash of the id is no escape
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; } // not one of our links
}

function open(id, entry) {
  const trajectory = byId.get(id);
  current?.item?.firstChild.removeAttribute("aria-current");
  if (!trajectory) {
    current = step = null;
    story.replaceChildren(element("p", { class: "empty" }, "This page has no trajectory ", element("span", { class: "mono" }, id),
      trajectories.length ? ". It may be in the dataset: starpo-trace show DATASET --trajectory ID" : "."));
    story.scrollIntoView({ block: "nearest" });
    return;
  }
  if (trajectory !== current) {
    story.replaceChildren(...showStory(trajectory, texts, meanings));
    step = null;
  }
  current = trajectory;
  const link = (trajectory.item ??= makeItem(trajectory)).firstChild;
  link.setAttribute("aria-current", "true");
  if (link.isConnected) link.scrollIntoView({ block: "nearest" });
  if (entry !== null) goTo(entry);
  else (matchMedia("(max-width: 900px)").matches ? story : document.getElementById("trajectories")).scrollIntoView();
}

function goTo(entry) {
  const steps = story.querySelectorAll(".entry");
  if (!(entry >= 0 && entry < steps.length)) return;
  for (const old of story.querySelectorAll(".here")) old.classList.remove("here");
  step = entry;
  for (const each of story.querySelectorAll(`[data-entry="${entry}"]`)) each.classList.add("here");
  steps[entry].focus({ preventScroll: true });
  steps[entry].scrollIntoView({ block: "start" });
}

function move(by) {
  if (!found.length) return;
  const place = found.indexOf(current);
  const next = found[place < 0 ? 0 : Math.min(Math.max(place + by, 0), found.length - 1)];
  location.hash = linkTo(next.trajectory_id);
}

function unfoldAll(isOpen) {
  for (const button of story.querySelectorAll(`.fold[aria-expanded="${!isOpen}"]`)) button.click();
  for (const details of story.querySelectorAll("details")) details.open = isOpen;
}

function nextBranch() {
  if (!current?.branches.length) return;
  const firsts = current.branches.map(([, first]) => first);
  goTo(firsts.find((first) => first > (step ?? -1)) ?? firsts[0]);
}

function toggleHelp() {
  help.hidden = !help.hidden;
  document.getElementById("help-button").setAttribute("aria-expanded", String(!help.hidden));
}

const KEYS = {
  j: () => move(1), k: () => move(-1), n: () => goTo((step ?? -1) + 1), p: () => goTo((step ?? 1) - 1),
  b: nextBranch, o: () => unfoldAll(Boolean(story.querySelector('.fold[aria-expanded="false"], details:not([open])'))),
  "/": () => { form.elements.search.focus(); form.scrollIntoView({ block: "center" }); }, "?": toggleHelp,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

for (const name of SELECTS) fillSelect(form.elements[name], trajectories);
form.elements.sort.append(...Object.entries(SORTS).map(([value, [name]]) => element("option", { value }, name)));
form.addEventListener("submit", (event) => event.preventDefault());
// A field says "change" again when it is left, by the very click that the list must not move under.
form.addEventListener("input", (event) => { if (event.target.matches("input")) refresh(); });
form.addEventListener("change", (event) => { if (event.target.matches("select")) refresh(); });
form.addEventListener("reset", () => setTimeout(refresh));
document.getElementById("help-button").addEventListener("click", toggleHelp);
story.addEventListener("click", (event) => {
  const marked = event.target.closest(".map [data-entry]");
  if (marked) location.hash = linkTo(current.trajectory_id, Number(marked.dataset.entry));
});
for (const name of document.querySelectorAll("[data-task]")) {
  const button = element("button", { type: "button", class: "link", title: "Show its trajectories" }, name.textContent);
  button.addEventListener("click", () => {
    form.reset();
    form.elements.search.value = `task:${name.dataset.task}`;
    refresh();
    document.getElementById("trajectories").scrollIntoView();
  });
  name.replaceChildren(button);
}
addEventListener("hashchange", readHash);
addEventListener("beforeprint", () => unfoldAll(true));

document.getElementById("browser").hidden = false;
refresh();
story.replaceChildren(element("p", { class: "empty" }, trajectories.length ? "Choose a trajectory, or press j." : "No trajectory is on this page."));
readHash();
