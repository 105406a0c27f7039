"""What was recorded -> what its trajectories lack for training, and what to do about it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import polars as pl

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.convert.manifest import read_manifest, scan_table
from starpo_trace.convert.sources.files import find_source_files
from starpo_trace.doctor.finding import Finding, Level
from starpo_trace.schema import MANIFEST_FILE

MAX_BYTES: Final = 64 << 20
_NAMED_FILES: Final = 3
_ADVICE: Final = {
    "no_reward": "reward(1.0, name=...) in the run, or `starpo-trace reward` when it is known",
    "token_ids_missing": "a server that gives them: vLLM with "
    'extra_body={"return_token_ids": True}; else they are made from the text',
    "logprob_missing": "logprobs=True in the agent's call; else only what needs none can be used",
    "logprob_estimated": "logprobs=True in the agent's call",
    "no_llm_call": "did it end before its first? else: is the model called by a package above, in "
    "this process, after instrument()?",
    "unended": "the process ended without its atexit handlers, or still runs",
    "no_content": "a call failed before its answer, or content is switched off: see the settings",
    "missing_history": "another process recorded the beginning: export its store, too",
    "content_truncated": "raise STARPO_MAX_CONTENT_BYTES, or the provider's attribute limits",
    "dropped_attributes": "raise the TracerProvider's span limits (OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT)",
    "missing_turn": "spans were sampled or lost on their way: sample whole runs (STARPO_SAMPLE)",
    "orphan_span": "spans were sampled or lost on their way: sample whole runs (STARPO_SAMPLE)",
    "redacted": "secrets were masked in them; they are kept out of RL, not out of SFT",
}
_NO_PROBLEM: Final = frozenset({"token_ids_missing", "logprob_missing", "redacted", "call_error"})
"""Reasons that most deployments live with."""


def check_recorded(path: Path) -> Iterator[Finding]:
    """Dataset, trace store or span file -> what its trajectories lack; of a store, the newest part.

    Raises:
        SourceError: the path does not exist or holds no spans.
        DatasetError: a damaged dataset.
    """
    if (path / MANIFEST_FILE).is_file():
        accounting, what = read_manifest(path).accounting, "runs"
        tables = {name: scan_table(path, name).collect() for name in ("trajectories", "turns")}
    else:
        files = [file.path for file in find_source_files([path])]
        chosen = _choose_newest(files)
        conversion = convert_sources(chosen)
        accounting, tables = conversion.accounting, conversion.tables
        what = "runs" if len(chosen) == len(files) else "of the newest runs"
    if accounting.damaged_records:
        told = "; ".join(accounting.damage[:_NAMED_FILES])
        yield _tell(
            "problem", f"{accounting.damaged_records:,} damaged records, skipped: {told}", ""
        )
    yield from _check_tables(tables["trajectories"], tables["turns"], what)


def _choose_newest(files: Sequence[Path]) -> list[Path]:
    chosen, num_bytes = [], 0
    for file in sorted(files, key=lambda each: each.stat().st_mtime_ns, reverse=True):
        num_bytes += file.stat().st_size
        if chosen and num_bytes > MAX_BYTES:
            break
        chosen.append(file)
    return chosen


def _check_tables(runs: pl.DataFrame, turns: pl.DataFrame, what: str) -> Iterator[Finding]:
    num_runs = runs.height
    if not num_runs:
        yield Finding(
            level="problem", what="no run was recorded", do="call instrument() before the agent"
        )
        return
    usable = dict(runs["usable_for"].value_counts().iter_rows())
    yield Finding(
        level="problem" if usable.get("none", 0) == num_runs else "ok",
        what=f"{num_runs:,} {what} with {turns.height:,} model calls: fit for RL "
        f"{usable.get('rl', 0):,}, for SFT only {usable.get('sft', 0):,}, for nothing "
        f"{usable.get('none', 0):,}",
    )
    reasons = runs["reasons"].explode().drop_nulls().value_counts(sort=True)
    for reason, count in reasons.iter_rows():
        level: Level = "note" if reason in _NO_PROBLEM else "problem"
        yield _tell(level, f"{reason}: {count:,} of {num_runs:,}", _ADVICE.get(reason, ""))
    for column, advice in (
        ("task_id", "trajectory(task_id=...): StarPO compares attempts at one task"),
        ("policy_id", "STARPO_POLICY_ID, or trajectory(policy_id=...)"),
    ):
        count = runs[column].null_count()
        if count:
            yield _tell("note", f"no {column}: {count:,} of {num_runs:,}", advice)


def _tell(level: Level, what: str, do: str) -> Finding:
    return Finding(level=level, what=what, do=do)
