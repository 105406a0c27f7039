"""Trajectory -> numbers of the steps that are no model calls, and spans for them.

The dataset holds how many steps there were and the numbers of the model calls; what the others did
is told from the calls and results in the messages.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

from starpo_trace import semconv as keys
from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.otlpjson import OutSpan, derive_id
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.mergepatch import load_json
from starpo_trace.messages import dump_json, make_encodable


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How the steps of a trajectory are numbered."""

    others: list[int]
    """Numbers of the steps that are no model calls."""
    num_steps: int
    """How many steps the root says there were."""
    part: str | None = None
    """Part that they are in, where the numbers begin later than at 0."""
    part_base: int | None = None
    """Number of that part's first step, so that the count is right."""
    is_impossible: bool = False
    """No numbers give the reason `duplicate_step` again."""


def plan_steps(trajectory: TrajectoryRows) -> StepPlan:
    """Trajectory -> its step numbers, such that the same is found missing as was.

    Raises:
        UnwritableError: `mixed_step_numbers`: its calls are not in the order of their numbers.
    """
    steps = [turn["step"] for turn in trajectory.turns]
    reasons = trajectory.row["reasons"]
    has_twins = len(set(steps)) < len(steps)
    is_ordered = all(one <= other for one, other in pairwise(steps))
    if not is_ordered or (has_twins and "duplicate_step" not in reasons):
        raise UnwritableError("mixed_step_numbers")
    num_others = max(trajectory.row["num_steps"] - len(steps), 0)
    needs_twin = "duplicate_step" in reasons and not has_twins
    others = _choose_numbers(trajectory, set(steps), num_others - needs_twin)
    if needs_twin and num_others and (steps or others):
        others.append((steps or others)[-1])
    numbers = {*steps, *others}
    num_found, num_counted = len(numbers), max(numbers, default=-1) + 1
    is_missing = "missing_turn" in reasons
    has_hole = num_counted > num_found
    is_shifted = has_hole and not is_missing
    return StepPlan(
        others=others,
        num_steps=num_found + 1 if is_missing and not has_hole else num_counted,
        part="remote-write" if is_shifted else None,
        part_base=num_counted - num_found if is_shifted else None,
        is_impossible=needs_twin and not num_others,
    )


def _choose_numbers(trajectory: TrajectoryRows, taken: set[int], num_wanted: int) -> list[int]:
    """Numbers for the other steps: those that rewards name, then holes, then what follows."""
    named = sorted(
        {
            each["step"]
            for each in trajectory.rewards
            if each["step"] is not None and each["trusted"] and each["step"] >= 0
        }
        - taken
    )
    chosen = named[: max(num_wanted, 0)]
    for number in count():
        if len(chosen) >= num_wanted:
            return sorted(chosen)
        if number not in taken and number not in chosen:
            chosen.append(number)
    raise AssertionError("numbers do not end")


def write_steps(
    trajectory: TrajectoryRows,
    plan: StepPlan,
    common: Callable[[], dict[str, Any]],
    trace_id: str,
) -> list[OutSpan]:
    """Trajectory and its numbers -> a span for each step that is no model call."""
    results = _read_results(trajectory)
    calls = _assign_calls(trajectory.turns, plan.others)
    spans = []
    for place, (step, (turn, call)) in enumerate(zip(plan.others, calls, strict=True)):
        times = [trajectory.row["started_ns"]]
        times += [] if turn is None else [turn["started_ns"], turn["ended_ns"]]
        time_ns = max((each for each in times if each is not None), default=0)
        attributes = {**common(), keys.STEP: step, keys.STEP_KIND: "other"}
        name = "step"
        if call is not None:
            name = f"execute_tool {call['name']}"
            attributes |= {
                keys.STEP_KIND: "tool",
                keys.OPERATION_NAME: "execute_tool",
                keys.TOOL_NAME: call["name"],
                keys.TOOL_CALL_ID: call["id"],
                keys.TOOL_CALL_ARGUMENTS: call["arguments"],
                keys.TOOL_CALL_RESULT: results.get(call["id"]),
            }
        spans.append(
            OutSpan(
                trace_id=trace_id,
                span_id=derive_id(8, trajectory.id, "step", place),
                name=name,
                start_ns=time_ns,
                end_ns=time_ns,
                attributes=attributes,
            )
        )
    return spans


def _assign_calls(turns: list[Row], others: list[int]) -> Iterator[tuple[Row | None, Row | None]]:
    """Each other step -> the turn before it, and the call of it that the step may have answered."""
    place = -1
    waiting: list[Row] = []
    for step in others:
        while place + 1 < len(turns) and turns[place + 1]["step"] <= step:
            place += 1
            waiting = list(turns[place]["tool_calls"] or ())
        yield (turns[place] if place >= 0 else None), (waiting.pop(0) if waiting else None)


def _read_results(trajectory: TrajectoryRows) -> dict[str, str]:
    """Call id -> what the tool answered, as text."""
    found: dict[str, str] = {}
    for node in trajectory.nodes.values():
        if "tool_call_response" not in node["message"]:
            continue
        for part in load_json(node["message"])["parts"]:
            if part.get("type") == "tool_call_response" and isinstance(part.get("id"), str):
                response = part.get("response")
                text = response if isinstance(response, str) else dump_json(response)
                found.setdefault(part["id"], make_encodable(text))
    return found
