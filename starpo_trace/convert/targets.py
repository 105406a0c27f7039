"""Feedback that names its target in part (a span's id alone, a whole trace) -> the target's row.

Backends keep feedback apart from spans: Phoenix's annotations name a span without its trace, scores
and assessments a trace without a span. What fits several targets is left without one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from starpo_trace.convert.tree import SpanColumns

Key = tuple[str, str]
"""Trace id and span id; either is empty where it is not told."""

_RUNS: Final = ("agent", "trajectory")
_AMBIGUOUS: Final = -1


def index_targets(spans: "SpanColumns", trajectory_ids: Sequence[str | None]) -> dict[Key, int]:
    """Spans -> index of each by its ids, by its span id alone, and of each trace's first used span."""
    index = {key: i for i, key in enumerate(zip(spans.trace_ids, spans.span_ids, strict=True))}
    wanted = {link for link in spans.links if link is not None and "" in link}
    if not wanted:
        return index
    found: dict[Key, int] = {}
    for i, record in enumerate(spans.records):
        if record is None or record == "reward":
            continue
        if (alone := ("", spans.span_ids[i])) in wanted:
            _put(found, alone, i, is_same=False)
        if (trace := (spans.trace_ids[i], "")) in wanted:
            other = found.get(trace, i)
            is_same = other != _AMBIGUOUS and trajectory_ids[other] == trajectory_ids[i]
            _put(found, trace, i, is_same=is_same)
    return index | {key: i for key, i in found.items() if i != _AMBIGUOUS}


def _put(found: dict[Key, int], key: Key, i: int, *, is_same: bool) -> None:
    """The first that fits; several of different trajectories are none."""
    if key not in found:
        found[key] = i
    elif not is_same:
        found[key] = _AMBIGUOUS


def widen_feedback(rewards: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Others' feedback on an agent's span, which is about a turn by its form -> about the run.

    Args:
        rewards: with `row` and the `target_row` it is linked to.
        spans: `row`, `record`, `is_ours`.
    """
    own = spans.select("row", own_record="record", is_ours="is_ours")
    targets = spans.select(target_row="row", target_record="record")
    is_wide = (
        (pl.col("own_record") == "reward")
        & ~pl.col("is_ours")
        & pl.col("target_record").is_in(_RUNS)
    ).fill_null(value=False)
    return (
        rewards.join(own, on="row", how="left", maintain_order="left")
        .join(targets, on="target_row", how="left", maintain_order="left")
        .with_columns(
            scope=pl.when(is_wide).then(pl.lit("trajectory")).otherwise("scope"),
            kind=pl.when(is_wide).then(pl.lit("outcome")).otherwise("kind"),
        )
        .select(rewards.columns)
    )
