// The map of a trajectory: a line for each branch, a mark for each entry, a curve where one leaves.

const COLUMN = 15, LANE = 20, MOST_LANES = 60;

function drawMap(trajectory) {
  const { entries, branches } = trajectory;
  const lanes = Math.min(branches.length, MOST_LANES);
  const x = (entry) => 10 + entry * COLUMN, y = (branch) => 12 + branch * LANE;
  const width = 20 + entries.length * COLUMN, height = 6 + Math.max(lanes, 1) * LANE;
  const map = drawing("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${entries.length} entries on ${branches.length} branch${branches.length === 1 ? "" : "es"}` });
  const groups = branches.slice(0, lanes).map(([leaves, first, last], branch) => {
    const group = drawing("g", { class: toneOf(branch) });
    const origin = leaves === null ? null : entries[leaves].branch;
    if (origin !== null && origin < lanes) {
      const [x0, y0, x1, y1] = [x(leaves), y(origin), x(first), y(branch)];
      const bend = Math.min(x0 + 14, x1);
      group.append(drawing("path", { class: "line", d: `M${x0} ${y0}C${bend} ${y0} ${x0} ${y1} ${bend} ${y1}L${x1} ${y1}` }));
    }
    if (last > first) group.append(drawing("path", { class: "line", d: `M${x(first)} ${y(branch)}L${x(last)} ${y(branch)}` }));
    return group;
  });
  map.append(...groups);
  entries.forEach((entry, place) => {
    if (entry.branch >= lanes && branches.length) return;
    const parent = groups[entry.branch] ?? map;
    parent.append(mark(entry, x(place), y(entry.branch), place));
  });
  const box = element("div", { class: "map" }, map);
  if (branches.length > lanes) box.append(element("p", { class: "soft small" }, `and ${branches.length - lanes} more branches below`));
  return box;
}

function mark(entry, x, y, place) {
  const classes = `${entry.kind}${entry.kind === "turn" && entry.outcome !== "ok" ? " failed" : ""}`;
  const attributes = { class: classes, "data-entry": place };
  const title = drawing("title", {}, nameOf(entry, place));
  if (entry.kind === "reward") return drawing("path", { ...attributes, d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z` }, title);
  if (entry.kind === "state") return drawing("rect", { ...attributes, x: x - 4, y: y - 4, width: 8, height: 8 }, title);
  return drawing("circle", { ...attributes, cx: x, cy: y, r: entry.kind === "turn" ? 5.5 : 4 }, title);
}

function nameOf(entry, place) {
  const what = { turn: `turn ${entry.turn}`, message: entry.role ?? "message", state: `state ${entry.name ?? ""}`, reward: `reward ${number(entry.value)}` };
  return `#${place + 1} ${what[entry.kind]}`;
}

function toneOf(branch) {
  return `b${branch % 6}`;
}
