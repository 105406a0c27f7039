"""Dataset folder -> facts of each of its runs, as evaluators take them."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from starpo_train.dataset import Manifest, read_manifest, scan_table
from starpo_train.errors import DataError
from starpo_train.evals.case import REFERENCES
from starpo_train.evals.path import ActionPath, PathStep, ToolCall, drop_thoughts, read_path

IDENTITY: Final = (
    *("trajectory_id", "task_id", "attempt", "policy_id", "cohort"),
    *("environment_name", "split", "distribution", "end"),
)
"""Columns that say whose run it was."""
_NUMBERS: Final = ("reward", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One run of a dataset."""

    identity: dict[str, Any]
    """Its row's columns of `IDENTITY`."""
    facts: dict[str, Any]
    """For `Evaluator.evaluate`, without references."""


def read_recorded_runs(path: Path, *, split: str | None = None) -> Iterator[RecordedRun]:
    """Dataset -> its runs, in the order of their ids; those left out of training, too.

    Raises:
        DataError: no dataset, or no run in the split.
    """
    manifest = read_manifest(path)
    rows = scan_table(manifest, "trajectories").select(*IDENTITY, *_NUMBERS)
    if split is not None:
        rows = rows.filter(pl.col("split") == split)
    chosen = rows.sort("trajectory_id").collect()
    if chosen.is_empty():
        where = f"in split {split!r}" if split is not None else "in it"
        raise DataError(f"{path}: no trajectory {where}; choose another split or record more.")
    wanted = chosen.lazy().select("trajectory_id")
    steps, texts, states = (
        _read_steps(manifest, wanted),
        _read_messages(manifest, wanted),
        _read_states(manifest, wanted),
    )
    for row in chosen.iter_rows(named=True):
        key = row["trajectory_id"]
        goal, results = texts.get(key, (None, {}))
        yield RecordedRun(
            identity={name: row[name] for name in IDENTITY},
            facts=_gather_facts(row, steps.get(key, []), goal, results, states.get(key)),
        )


def read_references(path: Path) -> dict[str, dict[str, Any]]:
    """JSON lines `{"task_id": ..., "expected_calls": [...], ...}` -> task -> its references.

    Raises:
        DataError: no such file, a line that is no reference, or two for one task.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a file of JSON lines.") from None
    references: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            reference = json.loads(line)
            task = str(reference.pop("task_id"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: no JSON object with a task_id ({error!r}).") from None
        unknown = sorted(reference.keys() - set(REFERENCES))
        if unknown:
            raise DataError(f"{where}: unknown {unknown[0]!r}; known: {', '.join(REFERENCES)}.")
        if task in references:
            raise DataError(f"{where}: a second reference for task {task!r}; keep one.")
        references[task] = reference
    return references


def _gather_facts(
    row: Mapping[str, Any],
    steps: list[tuple[PathStep, list[Any]]],
    goal: str | None,
    results: Mapping[Any, list[ToolCall]],
    state: Any,
) -> dict[str, Any]:
    left = {call_id: iter(found) for call_id, found in results.items()}
    answered = [
        replace(step, calls=tuple(map(_answer, step.calls, ids, [left] * len(ids))))
        for step, ids in steps
    ]
    facts: dict[str, Any] = {
        "input": goal,
        "trajectory": ActionPath(steps=tuple(answered), goal=goal),
        "reward": row["reward"],
        "state": state,
    }
    if row["input_tokens"] is not None and row["output_tokens"] is not None:
        facts["num_tokens"] = row["input_tokens"] + row["output_tokens"]
    return {name: value for name, value in facts.items() if value is not None}


def _answer(call: ToolCall, call_id: Any, left: Mapping[Any, Iterator[ToolCall]]) -> ToolCall:
    """The call with what came of it; where an id is used again, with the next result of it."""
    found = next(left.get(call_id, iter(())), None) if call_id is not None else None
    if found is None:
        return call
    is_ok = found.is_ok if call.is_ok is not False else False
    return replace(call, result=found.result, is_ok=is_ok)


def _read_steps(
    manifest: Manifest, wanted: pl.LazyFrame
) -> dict[str, list[tuple[PathStep, list[Any]]]]:
    """Trajectory -> (step, ids of its calls) of every turn that gave an answer."""
    rows = (
        scan_table(manifest, "turns")
        .join(wanted, on="trajectory_id", how="semi")
        .sort("trajectory_id", "turn")
        .select("trajectory_id", "text", "tool_calls", "output_node")
        .collect()
    )
    steps: dict[str, list[tuple[PathStep, list[Any]]]] = defaultdict(list)
    for key, text, calls, output_node in rows.iter_rows():
        if text is None and not calls and output_node is None:
            continue  # a call of the model that brought no answer
        found = read_path([{"tool_calls": calls or []}]).steps[0]
        said = drop_thoughts(text) or None if text else None
        steps[key].append((replace(found, text=said), [call["id"] for call in calls or ()]))
    return steps


def _read_messages(
    manifest: Manifest, wanted: pl.LazyFrame
) -> dict[str, tuple[str | None, dict[Any, list[ToolCall]]]]:
    """Trajectory -> (the user's first message, id of a call -> what came of it, each time)."""
    rows = (
        scan_table(manifest, "messages")
        .join(wanted, on="trajectory_id", how="semi")
        .filter(pl.col("sampled_turn").is_null())  # what the model wrote itself is no result
        .sort("trajectory_id", "depth", "node_id")
        .select("trajectory_id", "message")
        .collect()
    )
    found: dict[str, tuple[str | None, dict[Any, list[ToolCall]]]] = {}
    for key, text in rows.iter_rows():
        goal, results = found.get(key, (None, {}))
        message = json.loads(text)
        if message.get("role") == "user" and goal is None:
            goal = read_path([message]).goal
        for call_id, call in _list_results(message):
            results.setdefault(call_id, []).append(call)
        found[key] = (goal, results)
    return found


def _list_results(message: dict[str, Any]) -> Iterator[tuple[Any, ToolCall]]:
    """(id of a call, a call with the result) of each result in a message of the graph."""
    for part in message.get("parts") or ():
        call_id = part.get("id") if isinstance(part, dict) else None
        if call_id is None or part.get("type") != "tool_call_response":
            continue
        asked = {"role": "assistant", "tool_calls": [{"id": call_id, "name": "tool"}]}
        yield call_id, read_path([asked, {"role": "tool", "parts": [part]}]).calls[0]


_UNNAMED: Final = frozenset({None, "state"})


def _read_states(manifest: Manifest, wanted: pl.LazyFrame) -> dict[str, Any]:
    """Trajectory -> name of a state -> its last value."""
    rows = (
        scan_table(manifest, "states")
        .join(wanted, on="trajectory_id", how="semi")
        .filter(pl.col("value").is_not_null())
        .sort("trajectory_id", "step", "time_ns")
        .select("trajectory_id", "name", "value")
        .collect()
    )
    states: dict[str, dict[str | None, Any]] = defaultdict(dict)
    for key, name, value in rows.iter_rows():
        states[key][name] = json.loads(value)
    return {
        # a run whose one state has no name, or that of `starpo_trace.state`, is in that state
        key: next(iter(found.values())) if len(found) == 1 and set(found) <= _UNNAMED else found
        for key, found in states.items()
    }
