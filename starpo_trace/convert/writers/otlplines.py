"""Trajectories -> OTLP lines that `starpo-trace export` makes the same dataset of.

Spans are GenAI spans with our own keys, one trace of them a trajectory, as `starpo_trace` would have
recorded it in one process. What the dataset does not hold, no span can say again:

- rejected spans;
- signatures: a signed reward is written unsigned, and one that did not count, or that a signed one
  replaced, in a scope that cannot count;
- which span a reward stood on, where that span has others too; rewards without a value, there;
- what was wrong with single spans: such a reason becomes `dropped_attributes`, so that the verdict
  is never better than it was;
- trace ids of other processes, tool spans' ids and times (steps are written with the calls and
  results that the messages hold), and state diffs (states are written whole).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from starpo_trace import semconv as keys
from starpo_trace.convert.manifest import scan_table
from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.otlpcalls import CallWriter
from starpo_trace.convert.writers.otlpjson import OutSpan, derive_id, encode_request
from starpo_trace.convert.writers.otlprewards import place_events, write_rewards
from starpo_trace.convert.writers.otlpsteps import StepPlan, plan_steps, write_steps
from starpo_trace.convert.writers.report import Tally
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.limits import CUT_PREFIX, is_cut

Mode = Literal["delta", "full"]

REMADE_REASONS: Final = frozenset(
    {
        *("no_llm_call", "unended", "no_reward", "missing_turn", "duplicate_step", "no_content"),
        *("call_error", "stream_incomplete", "token_ids_missing", "logprob_missing", "redacted"),
        *("logprob_estimated", "missing_history", "reward_refused", "dropped_attributes"),
        "content_truncated",
    }
)
"""Reasons that the written spans give again by themselves."""
FORGOTTEN_REASONS: Final = frozenset(
    {"skewed_clock", "open_part", "reward_signature_invalid", "conflicting_root"}
)
"""Reasons that took nothing away, and are not given again."""
_UNWRITABLE: Final = "conflicting_copies"
_CUT_NOTE: Final = f"{CUT_PREFIX}0 bytes, blake2b {'0' * 32}]"


def write_otlp(
    trajectories: Iterable[TrajectoryRows], tally: Tally, dataset: Path, *, mode: Mode
) -> Iterator[bytes]:
    """Trajectories -> a line of spans for each.

    Args:
        trajectories: With turns, messages, states and rewards.
        tally: Counts what was written, left out and lost.
        dataset: Where they are from.
        mode: Whether calls hold only what is new of their prompts.
    """
    shared = _find_shared_ids(dataset)
    for each in trajectories:
        try:
            writer = _TraceWriter(trajectory=each, shared=shared, mode=mode)
            spans = writer.write()
            line = encode_request(spans, each.row["agent_name"] or "starpo")
        except UnwritableError as error:
            tally.left_out[str(error)] += 1
            continue
        tally.num_trajectories += 1
        tally.num_written += 1
        tally.losses.update(dict.fromkeys(writer.losses, 1))
        yield line


def _find_shared_ids(dataset: Path) -> frozenset[tuple[str, int]]:
    """Turns whose span id another turn of the same trace has too, as trajectory and turn."""
    traces = scan_table(dataset, "trajectories").select("trajectory_id", "trace_id")
    several = (
        scan_table(dataset, "turns")
        .select("trajectory_id", "turn", "span_id")
        .join(traces, on="trajectory_id")
        .filter(pl.len().over("trace_id", "span_id") > 1)
        .collect()
    )
    return frozenset(zip(several["trajectory_id"], several["turn"], strict=True))


@dataclass(slots=True, kw_only=True)
class _TraceWriter:
    """One trajectory on its way to spans."""

    trajectory: TrajectoryRows
    """The trajectory."""
    shared: frozenset[tuple[str, int]]
    """Turns whose span ids are not theirs alone."""
    mode: Mode
    """How much of its prompt a call holds."""
    losses: frozenset[str] = frozenset()
    """What of it could not be said."""

    def write(self) -> list[OutSpan]:
        """The trajectory's spans; the root first.

        Raises:
            UnwritableError: `conflicting_copies`, `mixed_step_numbers`, `history_mismatch`: no
                spans say the same again.
        """
        trajectory = self.trajectory
        if _UNWRITABLE in trajectory.row["reasons"]:
            raise UnwritableError(_UNWRITABLE)
        plan = plan_steps(trajectory)
        root = self._write_root(plan)
        calls = CallWriter(
            trajectory=trajectory,
            mode=self.mode,
            place=lambda turn: self._place_turn(turn, root),
            common=lambda record: self._common(record, plan),
        )
        turns = calls.write_turns()
        spans = [root, *turns, *calls.write_observations()]
        spans += write_steps(trajectory, plan, lambda: self._common("step", plan), root.trace_id)
        spans += self._write_states(root.trace_id, plan)
        spans += self._write_parts(root.trace_id, plan)
        rewards = write_rewards(trajectory, root, turns)
        place_events(rewards.events, root, turns)
        spans += rewards.spans
        for span in spans[1:]:
            if span.parent_id is None and span.trace_id == root.trace_id:
                span.parent_id = root.span_id
        self._note_cuts(root, spans)
        self.losses = frozenset({*rewards.losses, *self._list_lost_reasons(plan)})
        return spans

    def _write_root(self, plan: StepPlan) -> OutSpan:
        row = self.trajectory.row
        trace, _, span = row["trajectory_id"].partition("-")
        is_own = trace == row["trace_id"] and _is_span_id(span)
        reasons = list(row["reasons"])
        lost = set(reasons) - REMADE_REASONS - FORGOTTEN_REASONS
        is_dropped = bool(lost) or "dropped_attributes" in reasons or plan.is_impossible
        name = row["agent_name"]
        return OutSpan(
            trace_id=row["trace_id"],
            span_id=span if is_own else derive_id(8, row["trajectory_id"], "root"),
            name="invoke_agent" if name is None else f"invoke_agent {name}",
            start_ns=row["started_ns"] or 0,
            end_ns=row["ended_ns"],
            num_dropped=int(is_dropped),
            attributes={
                **self._common("trajectory", plan),
                keys.OPERATION_NAME: "invoke_agent",
                keys.AGENT_NAME: name,
                keys.TASK_ID: row["task_id"],
                keys.ATTEMPT: row["attempt"],
                keys.SEED: row["seed"],
                keys.POLICY_ID: row["policy_id"],
                keys.ENVIRONMENT_NAME: row["environment_name"],
                keys.ENVIRONMENT_VERSION: row["environment_version"],
                keys.COHORT: row["cohort"],
                keys.TRAJECTORY_END: None if row["end"] == "unknown" else row["end"],
                keys.TRAJECTORY_NUM_STEPS: plan.num_steps,
                keys.USABLE_FOR: row["usable_for"],
                keys.USABLE_FOR_REASONS: reasons or None,
            },
        )

    def _common(self, record: str, plan: StepPlan) -> dict[str, Any]:
        is_in_part = plan.part is not None and (
            record in {"llm", "step", "part"} or self.trajectory.row["num_parts"] == 1
        )
        return {
            keys.SCHEMA: keys.SCHEMA_VERSION,
            keys.RECORD: record,
            keys.TRAJECTORY_ID: self.trajectory.id,
            keys.CONVERSATION_ID: self.trajectory.row["conversation_id"],
            keys.PART: plan.part if is_in_part else None,
            keys.PART_BASE: plan.part_base if is_in_part else None,
        }

    def _place_turn(self, turn: Row, root: OutSpan) -> str:
        """Trace of a turn: the run's own, but for span ids that are there more than once."""
        if (self.trajectory.id, turn["turn"]) in self.shared or turn["span_id"] == root.span_id:
            return derive_id(16, self.trajectory.id, "turn", turn["turn"])
        return root.trace_id

    def _write_states(self, trace_id: str, plan: StepPlan) -> list[OutSpan]:
        return [
            OutSpan(
                trace_id=trace_id,
                span_id=derive_id(8, self.trajectory.id, "state", number),
                name=f"state {state['name']}",
                start_ns=state["time_ns"],
                end_ns=state["time_ns"],
                attributes={
                    **self._common("state", plan),
                    keys.STEP: state["step"],
                    keys.STATE_NAME: state["name"],
                    keys.STATE_HASH: state["hash"],
                    keys.STATE_VALUE: state["value"],
                },
            )
            for number, state in enumerate(self.trajectory.states)
        ]

    def _write_parts(self, trace_id: str, plan: StepPlan) -> list[OutSpan]:
        """Spans that say how many processes recorded the run."""
        names = [f"part-{number}" for number in range(1, self.trajectory.row["num_parts"])]
        if plan.part is not None:
            names = [plan.part, *names[1:]]
        start_ns = self.trajectory.row["started_ns"] or 0
        return [
            OutSpan(
                trace_id=trace_id,
                span_id=derive_id(8, self.trajectory.id, "part", name),
                name="part",
                start_ns=start_ns,
                end_ns=start_ns,
                attributes={
                    **self._common("part", plan),
                    keys.PART: name,
                    keys.PART_BASE: plan.part_base if name == plan.part else None,
                },
            )
            for name in names
        ]

    def _note_cuts(self, root: OutSpan, spans: list[OutSpan]) -> None:
        """Content that was cut in a tool's span is not there; the root says that there was some."""
        if "content_truncated" not in self.trajectory.row["reasons"]:
            return
        values = (value for span in spans for value in span.attributes.values())
        if not any(isinstance(value, str) and is_cut(value) for value in values):
            root.attributes[keys.TRAJECTORY_END_REASON] = _CUT_NOTE

    def _list_lost_reasons(self, plan: StepPlan) -> Iterator[str]:
        for reason in self.trajectory.row["reasons"]:
            if reason not in REMADE_REASONS:
                yield f"reason {reason}"
        if plan.is_impossible:
            yield "reason duplicate_step"


def _is_span_id(text: str) -> bool:
    return len(text) == 16 and not set(text) - set("0123456789abcdef") and bool(text.strip("0"))
