// One trajectory, step by step.

const FOLD_LENGTH = 900, FOLD_LINES = 14;
const LABELS = { text: "says", thinking: "thinks", call: "calls", result: "sees", also: "also" };
const MONO = new Set(["text", "thinking", "call", "result", "state", "error"]);

function showStory(trajectory, texts, meanings) {
  const facts = {
    reward: number(trajectory.reward), end: trajectory.end, policy: trajectory.policy_id, cohort: trajectory.cohort,
    split: trajectory.split, attempt: trajectory.attempt, seed: trajectory.seed, agent: trajectory.agent_name,
    environment: [trajectory.environment_name, trajectory.environment_version].filter((each) => each).join(" "),
    started: trajectory.started_ms === null ? null : new Date(trajectory.started_ms).toISOString().replace("T", " ").slice(0, 19),
    took: seconds(trajectory.seconds), turns: trajectory.num_turns, "tool calls": trajectory.num_tool_calls,
    branches: trajectory.num_branches, processes: trajectory.num_parts > 1 ? trajectory.num_parts : null,
    tokens: trajectory.input_tokens === null ? null : `${number(trajectory.input_tokens)} read, ${number(trajectory.output_tokens)} written`,
    trace: trajectory.trace_id, source: trajectory.source,
  };
  const steps = element("ol", { id: "steps" });
  let branch = 0, tools = null; // tools are shown where they change
  const beginnings = new Map(trajectory.branches.map(([, first, , isTorn], number) => [number || isTorn ? first : -1, number]));
  trajectory.entries.forEach((entry, place) => {
    const begins = beginnings.get(place);
    if (begins !== undefined) steps.append(showFork(trajectory, begins));
    else if (entry.branch !== branch) steps.append(element("li", { class: `fork ${toneOf(entry.branch)}` }, "back on ", element("strong", {}, `branch ${entry.branch + 1}`)));
    branch = entry.branch;
    const isNews = entry.kind === "turn" && entry.tools !== null && entry.tools !== tools;
    steps.append(showEntry(trajectory, entry, place, texts, isNews));
    if (entry.kind === "turn") tools = entry.tools;
  });
  return [
    element("h3", {}, trajectory.task_id ?? "no task"),
    element("p", { class: "id mono" }, trajectory.trajectory_id),
    element("dl", { class: "facts num" }, Object.entries(facts).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", { class: name === "trace" ? "mono" : null }, String(value))))),
    element("ul", { class: "reasons" }, element("li", {}, element("span", { class: `chip ${verdictOf(trajectory)}` }, trajectory.usable_for)),
      trajectory.reasons.map((reason) => element("li", {}, element("span", { class: "mono" }, reason), element("span", { class: "soft" }, Object.hasOwn(meanings, reason) ? ` ${meanings[reason]}` : "")))),
    drawMap(trajectory),
    steps,
  ];
}

function showFork(trajectory, branch) {
  const [leaves, , , isTorn] = trajectory.branches[branch];
  const name = element("strong", {}, `Branch ${branch + 1}`);
  if (leaves === null) {
    const why = isTorn ? " goes on from messages that are not in the dataset" : " begins a history of its own";
    return element("li", { class: `fork ${toneOf(branch)}` }, name, why);
  }
  const origin = trajectory.entries[leaves];
  return element("li", { class: `fork ${toneOf(branch)}` }, name, ` leaves branch ${origin.branch + 1} after `,
    element("a", { href: linkTo(trajectory.trajectory_id, leaves) }, nameOf(origin, leaves)), ": what follows there is not in its history");
}

function showEntry(trajectory, entry, place, texts, hasNewTools) {
  const title = element("div", { class: "title num" },
    element("a", { href: linkTo(trajectory.trajectory_id, place), "aria-label": `Link to entry ${place + 1}` }, `#${place + 1}`), ...describeEntry(entry));
  const made = element("li", { class: `entry ${entry.kind} ${toneOf(entry.branch)}`, "data-entry": place, tabindex: -1 }, title);
  for (const [kind, name, id, text] of entry.parts ?? []) made.append(showBlock(kind, texts[text], name, id));
  if (entry.kind === "turn") {
    if (!entry.parts.length && entry.error === null) made.append(element("p", { class: "soft small" }, "no answer was recorded"));
    if (entry.error !== null) made.append(showBlock("error", texts[entry.error]));
    if (hasNewTools) made.append(showTools(texts[entry.tools]));
  }
  if (entry.kind === "state") made.append(showBlock("state", texts[entry.text], entry.name));
  if (entry.kind === "reward" && entry.explanation !== null) made.append(showBlock("why", texts[entry.explanation]));
  return made;
}

function describeEntry(entry) {
  if (entry.kind === "message") return [element("span", {}, entry.role ?? "message")];
  if (entry.kind === "state") return [element("span", {}, `state${entry.step === null ? "" : ` · step ${entry.step}`}`)];
  if (entry.kind === "reward") return describeReward(entry);
  const tokens = entry.input_tokens === null && entry.output_tokens === null ? null : `${number(entry.input_tokens)} → ${number(entry.output_tokens)} tokens`;
  const ids = entry.token_provenance === "exact" ? `ids exact, log-probabilities ${entry.logprob_provenance}` : null;
  const facts = [`step ${number(entry.step)}`, entry.step_kind, entry.model, entry.temperature === null ? null : `t ${number(entry.temperature)}`, seconds(entry.seconds), tokens, entry.finish_reason, ids];
  return [
    element("strong", {}, `turn ${entry.turn}`), ...facts.filter((fact) => fact).map((fact) => element("span", {}, String(fact))),
    entry.outcome === "ok" ? null : element("span", { class: "chip none" }, String(entry.outcome)),
    entry.reward === null ? null : element("span", { class: "chip sft" }, `reward ${number(entry.reward)}`),
  ].filter((each) => each);
}

function describeReward(entry) {
  const notes = [entry.scope, entry.kind_of, entry.source, entry.judge_id, entry.signature === "missing" ? "not signed" : `signature ${entry.signature}`, entry.key_id];
  const range = entry.min === null && entry.max === null ? null : `range ${number(entry.min)} to ${number(entry.max)}`;
  return [
    element("strong", {}, `${entry.name ?? "reward"} = ${number(entry.value)}`), ...[...notes, range].filter((note) => note).map((note) => element("span", {}, String(note))),
    entry.trusted ? null : element("span", { class: "chip none" }, `does not count: ${entry.untrusted_because}`),
    entry.superseded ? element("span", { class: "chip" }, "replaced by a later one") : null,
  ].filter((each) => each);
}

function showBlock(kind, text, name, id) {
  const own = MONO.has(kind) ? kind : "raw";
  const body = element("div", { class: "body" });
  if (name || id) body.append(element("div", {}, element("span", { class: "tool" }, name ?? ""), id ? element("span", { class: "id mono" }, ` ${id}`) : null));
  body.append(...foldText(text));
  return element("div", { class: `block ${own}` }, element("div", { class: "kind" }, Object.hasOwn(LABELS, kind) ? LABELS[kind] : kind), body);
}

function foldText(text) {
  const shown = element("div", { class: "words" }, text);
  if (text.length <= FOLD_LENGTH && text.split("\n", FOLD_LINES + 1).length <= FOLD_LINES) return [shown];
  shown.classList.add("folded");
  const words = `all ${number(text.length)} characters`;
  const button = element("button", { type: "button", class: "fold", "aria-expanded": "false" }, `Show ${words}`);
  button.addEventListener("click", () => {
    const isFolded = shown.classList.toggle("folded");
    button.setAttribute("aria-expanded", String(!isFolded));
    button.textContent = isFolded ? `Show ${words}` : "Fold";
  });
  return [shown, button];
}

function showTools(text) {
  let count = "";
  try { count = `${JSON.parse(text).length} `; } catch { /* shown as it stands */ }
  const details = element("details", {}, element("summary", { class: "soft small" }, `${count}tools offered`));
  details.addEventListener("toggle", () => { if (details.open && details.childElementCount === 1) details.append(showBlock("tools", text)); });
  return details;
}
