"""All trajectories -> those that one page holds: a fixed number, a fixed size, as many of each verdict.

The order within a verdict is that of a hash of the id: it says nothing about the trajectory, and is the
same whenever the page is made again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import polars as pl

from starpo_trace.look.funnel import VERDICTS
from starpo_trace.look.opened import Scan, read_trajectories
from starpo_trace.look.payload import Payload
from starpo_trace.look.story import tell_story

_BATCH_BYTES: Final = 16_000_000
"""Text read at once, unless one trajectory alone has more."""
_BATCH_ROWS: Final = 200
_TEXTS: Final = {
    "messages": ("message",),
    "turns": ("reasoning", "text", "tool_definitions", "error"),
    "states": ("value",),
    "rewards": ("explanation",),
}
_BY_TRAJECTORY = "trajectory_id"


@dataclass(slots=True, kw_only=True)
class Sample:
    """The trajectories of a page."""

    payload: Payload
    """Their content."""
    num_all: int
    """Trajectories of the dataset."""
    max_trajectories: int
    max_bytes: int
    num_chosen: int = 0
    """As many as `max_trajectories` allows."""
    too_large: list[str] = field(default_factory=list)
    """Chosen ones left out because they did not fit into `max_bytes`."""

    @property
    def num_shown(self) -> int:
        """Trajectories on the page."""
        return self.num_chosen - len(self.too_large)

    @property
    def is_whole(self) -> bool:
        """Whether the page holds the dataset's every trajectory."""
        return self.num_shown == self.num_all


def draw_sample(scan: Scan, *, max_trajectories: int, max_bytes: int) -> Sample:
    """Tables -> sample; its memory is bounded by `max_bytes` and the largest batch read."""
    trajectories = scan("trajectories").select(_BY_TRAJECTORY, "usable_for").collect()
    chosen = choose_trajectories(trajectories, max_trajectories)
    sample = Sample(
        payload=Payload(),
        num_all=trajectories.height,
        max_trajectories=max_trajectories,
        max_bytes=max_bytes,
        num_chosen=len(chosen),
    )
    sizes = _measure(scan, chosen)
    for batch in _batches(chosen, sizes):
        # One that is larger by itself than the page may be is not even read.
        readable = [each for each in batch if sizes.get(each, 0) <= max_bytes]
        tables = read_trajectories(scan, readable)
        parts = {
            name: table.partition_by(_BY_TRAJECTORY, as_dict=True) for name, table in tables.items()
        }
        for each in batch:
            if each not in readable or not _add(sample, parts, tables, each):
                sample.too_large.append(each)
    return sample


def choose_trajectories(trajectories: pl.DataFrame, max_trajectories: int) -> list[str]:
    """`trajectory_id`, `usable_for` -> ids, one of each verdict in turn until there are enough."""
    by_verdict = [
        sorted(
            trajectories.filter(pl.col("usable_for").fill_null("none") == verdict)[_BY_TRAJECTORY],
            key=_hash,
        )
        for verdict in VERDICTS
    ]
    longest = max(map(len, by_verdict))
    rounds = (ids[place] for place in range(longest) for ids in by_verdict if place < len(ids))
    return [each for each, _ in zip(rounds, range(max_trajectories), strict=False)]


def _hash(trajectory_id: str) -> bytes:
    return blake2b(trajectory_id.encode(), digest_size=8).digest()


def _add(
    sample: Sample,
    parts: Mapping[str, Mapping[Any, pl.DataFrame]],
    tables: Mapping[str, pl.DataFrame],
    trajectory_id: str,
) -> bool:
    rows = {name: parts[name].get((trajectory_id,), tables[name].clear()) for name in parts}
    return sample.payload.add(tell_story(rows), sample.max_bytes)


def _measure(scan: Scan, chosen: Sequence[str]) -> dict[str, int]:
    """Bytes of text of each of these trajectories."""
    is_chosen = pl.col(_BY_TRAJECTORY).is_in(list(chosen))
    frames = [
        scan(name)
        .filter(is_chosen)
        .group_by(_BY_TRAJECTORY)
        .agg(size=pl.sum_horizontal(pl.col(columns).str.len_bytes().fill_null(0).sum()))
        for name, columns in _TEXTS.items()
    ]
    sizes = pl.concat(pl.collect_all(frames, engine="streaming"))
    return dict(sizes.group_by(_BY_TRAJECTORY).agg(pl.col("size").sum()).iter_rows())


def _batches(chosen: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_bytes = 0
    for each in chosen:
        if batch and (num_bytes + sizes.get(each, 0) > _BATCH_BYTES or len(batch) == _BATCH_ROWS):
            yield batch
            batch, num_bytes = [], 0
        batch.append(each)
        num_bytes += sizes.get(each, 0)
    if batch:
        yield batch
