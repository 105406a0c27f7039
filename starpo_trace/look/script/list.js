// The list of trajectories: filters, order, search in every recorded text.

const NOTHING = "\u0000"; // stands for null in a select; no recorded text has it: it is made visible
const SORTS = {
  sample: ["As sampled", () => 0],
  started: ["Start", (a, b) => compare(a.started_ms, b.started_ms)],
  best: ["Reward, best first", (a, b) => compare(a.reward, b.reward, -1)],
  worst: ["Reward, worst first", (a, b) => compare(a.reward, b.reward)],
  task: ["Task", (a, b) => compare(a.task_id, b.task_id) || compare(a.attempt, b.attempt)],
  turns: ["Turns, most first", (a, b) => compare(a.num_turns, b.num_turns, -1)],
  tokens: ["Tokens written, most first", (a, b) => compare(a.output_tokens, b.output_tokens, -1)],
  branches: ["Branches, most first", (a, b) => compare(a.num_branches, b.num_branches, -1)],
};
const SELECTS = ["usable_for", "reason", "cohort", "policy_id", "split", "end"];

function compare(a, b, sign = 1) { // what is missing, or no number among numbers, comes last both ways
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a < typeof b ? -1 : 1;
  return sign * (a < b ? -1 : a > b ? 1 : 0);
}

function valuesOf(trajectory, name) {
  return name === "reason" ? trajectory.reasons : [trajectory[name]];
}

function fillSelect(select, trajectories) {
  const counts = new Map();
  for (const trajectory of trajectories) {
    for (const value of valuesOf(trajectory, select.name)) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  const ordered = [...counts].sort((a, b) => b[1] - a[1] || compare(a[0], b[0]));
  select.append(element("option", { value: "" }, "any"));
  for (const [value, count] of ordered) {
    const name = value === null ? "not named" : value;
    select.append(element("option", { value: value === null ? NOTHING : `=${value}` }, `${name} (${count})`));
  }
}

function textsOf(trajectory) { // indexes of all texts that belong to it
  const found = new Set();
  for (const entry of trajectory.entries) {
    for (const part of entry.parts ?? []) found.add(part[3]);
    for (const name of ["error", "tools", "text", "explanation"]) {
      if (typeof entry[name] === "number") found.add(entry[name]);
    }
  }
  return found;
}

function namesOf(trajectory) {
  const parts = trajectory.entries.flatMap((entry) => [entry.name, entry.model, ...(entry.parts ?? []).flatMap((part) => [part[1], part[2]])]);
  const own = [trajectory.trajectory_id, trajectory.task_id, trajectory.conversation_id, trajectory.trace_id, ...trajectory.reasons];
  return [...new Set([...own, ...parts])].filter((name) => name).join("\n").toLowerCase();
}

function makeFilter(form, texts) {
  const wanted = form.elements.search.value.trim().toLowerCase();
  const hits = new Set(wanted ? texts.flatMap((text, i) => (text.toLowerCase().includes(wanted) ? [i] : [])) : []);
  const low = form.elements.low.value === "" ? -Infinity : Number(form.elements.low.value);
  const high = form.elements.high.value === "" ? Infinity : Number(form.elements.high.value);
  const isBounded = low !== -Infinity || high !== Infinity;
  return (trajectory) => {
    for (const name of SELECTS) {
      const value = form.elements[name].value;
      if (value && !valuesOf(trajectory, name).some((each) => (each === null ? NOTHING : `=${each}`) === value)) return false;
    }
    if (isBounded && !(typeof trajectory.reward === "number" && trajectory.reward >= low && trajectory.reward <= high)) return false;
    if (!wanted) return true;
    if (wanted.startsWith("task:")) return trajectory.task_id?.toLowerCase() === wanted.slice(5).trim();
    trajectory.texts ??= textsOf(trajectory);
    trajectory.names ??= namesOf(trajectory);
    return trajectory.names.includes(wanted) || [...trajectory.texts].some((text) => hits.has(text));
  };
}

function makeItem(trajectory) {
  const id = trajectory.trajectory_id;
  const facts = [`${trajectory.num_turns} turn${trajectory.num_turns === 1 ? "" : "s"}`, trajectory.end, trajectory.num_branches > 1 ? `${trajectory.num_branches} branches` : null];
  const attempt = trajectory.attempt === null ? "" : ` · attempt ${trajectory.attempt}`;
  return element("li", {}, element("a", { href: linkTo(id), title: id },
    element("span", { class: "line" },
      element("span", {}, element("span", { class: `dot ${verdictOf(trajectory)}` }), (trajectory.task_id ?? id) + attempt),
      element("strong", { class: "num" }, number(trajectory.reward))),
    element("span", { class: "line soft small" },
      element("span", {}, facts.filter((fact) => fact).join(" · ")),
      element("span", {}, trajectory.usable_for))));
}

function verdictOf(trajectory) { // as a class name: only one of ours
  return ["rl", "sft", "none"].includes(trajectory.usable_for) ? trajectory.usable_for : "";
}
