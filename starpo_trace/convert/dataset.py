"""Span sources -> trajectory dataset, with every span accounted for."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import polars as pl

from starpo_trace.convert.columns import build_frame
from starpo_trace.convert.copies import CONFLICT, DistinctSpans, deduplicate_spans
from starpo_trace.convert.curation import curate_trajectories, summarise_curation
from starpo_trace.convert.dialects import convert_span
from starpo_trace.convert.dialects.canonical import Rejection
from starpo_trace.convert.fetched import join_fetched_answers
from starpo_trace.convert.frames import build_frames
from starpo_trace.convert.manifest import (
    Accounting,
    Manifest,
    check_output,
    digest_tables,
    lock_output,
    read_manifest,
    scan_table,
    undo_unfinished,
    write_manifest,
    write_tables,
)
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.recipe import (
    NO_RECIPE,
    Recipe,
    SplitRules,
    check_recipe,
    describe_recipe,
    read_recipe,
)
from starpo_trace.convert.rewards import DEFAULT_TRUST, SIGNATURE_STATES, TRUST_SOURCES, Trust
from starpo_trace.convert.sources import (
    SourceFingerprint,
    find_source_files,
    fingerprint_file,
    read_span_batches,
)
from starpo_trace.convert.trajectories import build_tables
from starpo_trace.convert.tree import Assignment, assign_trajectories, build_span_forest
from starpo_trace.errors import ConfigError, SourceError
from starpo_trace.guard import warn
from starpo_trace.schema import REJECTED, REWARD_SOURCES
from starpo_trace.semconv import TRAJECTORY_ID
from starpo_trace.signing import Keyring, read_keyring

__all__ = [
    "TRUST_SOURCES",
    "Conversion",
    "build_dataset",
    "convert_sources",
    "read_manifest",
    "scan_table",
]

_LOSSES: Final = frozenset(
    {"history_mismatch", "malformed_attributes", "cycle", "conflicting_root"}
)
"""Reasons to reject a span that its trajectory has too: most leave a hole in it."""

_SORT_KEYS: Final = {
    "trajectories": ("trajectory_id",),
    "turns": ("trajectory_id", "turn"),
    "messages": ("trajectory_id", "depth", "node_id"),
    "states": ("trajectory_id", "step", "time_ns", "name", "hash", "value"),
    "rewards": ("trajectory_id", "time_ns", "reward_id", "span_id", "name", "value"),
    "rejected": ("trace_id", "span_id", "name", "reason", "detail", "scope", "source"),
}

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A dataset that is not written yet."""

    tables: dict[str, pl.DataFrame]
    """The tables of `starpo_trace.schema`, sorted."""
    accounting: Accounting
    """Where every span went."""
    sources: tuple[SourceFingerprint, ...]
    """The files read."""


@dataclass(slots=True, kw_only=True)
class _Spans:
    """Everything read from the sources."""

    rows: list[SpanRow]
    malformed: list[MalformedSpan]
    num_damaged: int
    sources: list[SourceFingerprint]


def build_dataset(
    sources: Sequence[Path],
    output: Path,
    *,
    test_fraction: float = 0.0,
    trust_sources: Sequence[str] = TRUST_SOURCES,
    reward_keys: str | Path | Keyring | None = None,
    require_signed: bool | None = None,
    recipe: Path | Recipe | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Stores and OTLP files -> dataset folder at `output`, as a new version if there is one.

    Args:
        sources: trace store folders, segment files, OTLP files or folders of them.
        output: the dataset's folder, new or an earlier dataset.
        test_fraction: share of the tasks (by hash of the task id) whose trajectories form the
            split `test`; trajectories without a task are always `train`. A recipe says it as
            `splits.test`.
        trust_sources: reward sources that count.
        reward_keys: key file or keyring that reward signatures are checked with.
        require_signed: whether unsigned rewards count for nothing; default: when there are keys.
        recipe: recipe file, or a recipe: what rewards make, shaping, groups, splits, what is
            left out.
        progress: called with the name of each stage and a number of spans or rows.

    Raises:
        SourceError: a source does not exist, is empty or holds no spans.
        DatasetError: `output` holds something else, or cannot be written.
        ConfigError: `test_fraction` is not within [0, 1], a trusted source is none, the keys
            cannot be read or are missing, or the recipe cannot be used.
    """
    if not 0.0 <= test_fraction <= 1.0:
        raise ConfigError(f"test_fraction is {test_fraction}; it must be between 0 and 1")
    if unknown := sorted(set(trust_sources) - set(REWARD_SOURCES)):
        raise ConfigError(
            f"trust_sources has {', '.join(unknown)}; use {', '.join(REWARD_SOURCES)}"
        )
    trust = _decide_trust(trust_sources, reward_keys, require_signed=require_signed)
    rules = resolve_recipe(recipe, test_fraction)
    check_output(output)
    conversion = convert_sources(sources, trust=trust, recipe=rules, progress=progress)
    tables = conversion.tables
    verdicts = Counter(tables["trajectories"]["usable_for"].to_list())
    signatures = Counter(tables["rewards"]["signature"].to_list())
    with lock_output(output), undo_unfinished(output):
        written = write_tables(output, tables)
        manifest = Manifest(
            starpo_version=version("starpo"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            parameters={
                "test_fraction": test_fraction,
                "trust_sources": list(trust_sources),
                "reward_keys": [] if trust.keyring is None else trust.keyring.key_ids,
                "require_signed": trust.require_signed,
                "recipe": describe_recipe(rules),
            },
            sources=[
                {"path": file.path, "bytes": file.num_bytes, "blake2b": file.blake2b}
                for file in conversion.sources
            ],
            counts={name: table.height for name, table in tables.items()},
            accounting=conversion.accounting,
            tables=written,
            usable_for={verdict: verdicts[verdict] for verdict in ("rl", "sft", "none")},
            signatures={state: signatures[state] for state in SIGNATURE_STATES},
            curation=summarise_curation(tables["trajectories"], rules),
            digest=digest_tables(tables),
        )
        write_manifest(output, manifest)
    _report(progress, "written", sum(manifest.counts.values()))
    return manifest


def convert_sources(
    sources: Sequence[Path],
    *,
    trust: Trust = DEFAULT_TRUST,
    recipe: Recipe = NO_RECIPE,
    progress: Progress | None = None,
) -> Conversion:
    """Stores and OTLP files -> tables in memory; see `build_dataset`."""
    spans = _read_spans(sources, progress)
    num_read = len(spans.rows) + len(spans.malformed)
    if not num_read:
        raise SourceError(
            f"{', '.join(map(str, sources))}: no spans in {len(spans.sources)} file(s)"
            + (f", {spans.num_damaged} damaged record(s)" if spans.num_damaged else "")
            + "; has the agent run with tracing on, and was it flushed?"
        )
    distinct = deduplicate_spans(spans.rows)
    tables = convert_distinct_spans(distinct, trust=trust, recipe=recipe)
    num_converted = len(distinct.rows) + len(distinct.contradicting)
    _report(progress, "converted", num_converted)
    num_used = num_converted - tables["rejected"].height
    rejected = pl.concat([tables["rejected"], _malformed_frame(spans.malformed)])
    tables["rejected"] = rejected
    tables["trajectories"] = curate_trajectories(tables["trajectories"], recipe)
    tables = {name: table.sort(_SORT_KEYS[name], nulls_last=True) for name, table in tables.items()}
    accounting = Accounting(
        spans_read=num_read,
        spans_used=num_used,
        spans_rejected_by_reason=dict(sorted(Counter(rejected["reason"].to_list()).items())),
        duplicates=distinct.num_duplicates,
        damaged_records=spans.num_damaged,
    )
    return Conversion(tables=tables, accounting=accounting, sources=tuple(spans.sources))


def resolve_recipe(recipe: Path | Recipe | None, test_fraction: float) -> Recipe:
    """What a build was given -> the recipe it follows.

    Raises:
        ConfigError: the recipe cannot be used, or both say what is held out.
    """
    if recipe is None:
        return Recipe(splits=SplitRules(test=test_fraction))
    if test_fraction:
        raise ConfigError(
            f"test_fraction = {test_fraction} beside a recipe; write test = {test_fraction} in its "
            "[splits]"
        )
    if isinstance(recipe, Recipe):
        check_recipe(recipe)
        return recipe
    return read_recipe(recipe)


def convert_rows(
    rows: Sequence[SpanRow], *, trust: Trust = DEFAULT_TRUST, recipe: Recipe = NO_RECIPE
) -> dict[str, pl.DataFrame]:
    """Different span rows -> tables; `rejected` has one row per span that is not used."""
    return convert_distinct_spans(DistinctSpans(rows=list(rows)), trust=trust, recipe=recipe)


def convert_distinct_spans(
    distinct: DistinctSpans, *, trust: Trust = DEFAULT_TRUST, recipe: Recipe = NO_RECIPE
) -> dict[str, pl.DataFrame]:
    """Spans and their contradicting copies -> tables; see `convert_rows`."""
    rows = join_fetched_answers(distinct.rows)
    forest = build_span_forest(
        [row.trace_id for row in rows],
        [row.span_id for row in rows],
        [row.parent_id for row in rows],
    )
    assignment = assign_trajectories(forest, rows, [convert_span(row) for row in rows])
    frames = build_frames(rows, forest, assignment)
    tables = build_tables(frames, _build_losses(distinct, assignment), trust=trust, recipe=recipe)
    rejected = [
        _rejected_row(row, span)
        for row, span in zip(rows, assignment.spans, strict=True)
        if isinstance(span, Rejection)
    ]
    conflict = Rejection(reason=CONFLICT, detail="another copy of this span differs from it")
    rejected += [_rejected_row(row, conflict) for row in distinct.contradicting]
    tables["rejected"] = pl.concat([tables["rejected"], build_frame(rejected, REJECTED)])
    return tables


def _build_losses(distinct: DistinctSpans, assignment: Assignment) -> pl.DataFrame:
    """What the trajectories lack because of spans that are not used -> `trajectory_id`, `reason`."""
    losses = [(row.attributes.get(TRAJECTORY_ID), CONFLICT) for row in distinct.contradicting]
    parts = zip(distinct.rows, assignment.spans, assignment.trajectory_ids, strict=True)
    for row, span, trajectory in parts:
        if (row.trace_id, row.span_id) in distinct.contested:
            losses.append((trajectory, CONFLICT))
        if isinstance(span, Rejection) and span.reason in _LOSSES:
            losses.append((trajectory, span.reason))
    rows = [
        {"trajectory_id": trajectory, "reason": reason}
        for trajectory, reason in losses
        if isinstance(trajectory, str)
    ]
    return build_frame(rows, {"trajectory_id": "str", "reason": "str"})


def _decide_trust(
    sources: Sequence[str], keys: str | Path | Keyring | None, *, require_signed: bool | None
) -> Trust:
    keyring = keys if keys is None or isinstance(keys, Keyring) else read_keyring(keys)
    if require_signed and keyring is None:
        raise ConfigError("signed rewards are required, but there are no keys; give --reward-keys")
    if keyring is not None and keyring.is_exposed:
        warn("key file %s: other users can read it; do `chmod 600` on it", keys)
    return Trust(
        sources=tuple(sources),
        keyring=keyring,
        require_signed=keyring is not None if require_signed is None else require_signed,
    )


def _read_spans(sources: Sequence[Path], progress: Progress | None) -> _Spans:
    spans = _Spans(rows=[], malformed=[], num_damaged=0, sources=[])
    for file in find_source_files(sources):
        spans.sources.append(fingerprint_file(file.path))
        for batch in read_span_batches(file):
            spans.rows.extend(batch.rows)
            spans.malformed.extend(batch.malformed)
            spans.num_damaged += len(batch.damaged)
        _report(progress, "read", len(spans.rows))
    return spans


def _rejected_row(row: SpanRow, rejection: Rejection) -> dict[str, Any]:
    return {
        "source": row.source,
        "trace_id": row.trace_id,
        "span_id": row.span_id,
        "name": row.name,
        "scope": row.scope,
        "reason": rejection.reason,
        "detail": rejection.detail,
    }


def _malformed_frame(malformed: Sequence[MalformedSpan]) -> pl.DataFrame:
    rows = [
        {
            "source": span.source,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "name": span.name,
            "scope": span.scope,
            "reason": "malformed_span",
            "detail": span.detail,
        }
        for span in malformed
    ]
    return build_frame(rows, REJECTED)


def _report(progress: Progress | None, stage: str, count: int) -> None:
    if progress is not None:
        progress(stage, count)
