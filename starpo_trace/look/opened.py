"""Path of a dataset, trace store or span file -> its tables, scanned when they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.convert.manifest import Accounting, Manifest, read_manifest, scan_table
from starpo_trace.errors import DatasetError
from starpo_trace.schema import MANIFEST_FILE, TABLES

Scan = Callable[[str], pl.LazyFrame]

_BY_TRAJECTORY = "trajectory_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What there is to look at."""

    path: Path
    """Where it lies."""
    scan: Scan
    """Table name -> lazy frame; a table is checked against its hashes on first use only."""
    accounting: Accounting
    """Where every span went."""
    manifest: Manifest | None
    """None: spans that were not exported to a dataset."""


def open_path(path: Path) -> Opened:
    """Dataset folder, trace store or span file -> tables; spans are converted in memory.

    Raises:
        DatasetError: a dataset of another schema version, or a damaged manifest.
        SourceError: the path does not exist or holds no spans.
    """
    if (path / MANIFEST_FILE).is_file():
        manifest = read_manifest(path)
        return Opened(
            path=path,
            scan=cache(lambda name: scan_table(path, name)),
            accounting=manifest.accounting,
            manifest=manifest,
        )
    conversion = convert_sources([path])
    tables = conversion.tables
    return Opened(
        path=path,
        scan=lambda name: tables[name].lazy(),
        accounting=conversion.accounting,
        manifest=None,
    )


def find_trajectory(scan: Scan, trajectory_id: str) -> str:
    """A trajectory's id, or the beginning of one id only -> the id.

    Raises:
        DatasetError: no trajectory has it, or several begin so.
    """
    trajectories = scan("trajectories")
    found = (
        trajectories.select(_BY_TRAJECTORY)
        .filter(pl.col(_BY_TRAJECTORY).str.starts_with(trajectory_id))
        .collect()[_BY_TRAJECTORY]
        .to_list()
    )
    if trajectory_id in found:
        return trajectory_id
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} trajectories begin with" if found else "no trajectory"
    num_all = trajectories.select(pl.len()).collect().item()
    raise DatasetError(
        f"{what} {trajectory_id!r} among {num_all}; `starpo-trace show` without --trajectory "
        "lists them"
    )


def read_trajectories(scan: Scan, trajectory_ids: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Rows of these trajectories, by table, without the token ids."""
    is_wanted = pl.col(_BY_TRAJECTORY).is_in(list(trajectory_ids))
    ids = ("prompt_token_ids", "response_token_ids", "response_logprobs")
    tables = [name for name, columns in TABLES.items() if _BY_TRAJECTORY in columns]
    frames = (scan(name).filter(is_wanted).drop(ids, strict=False) for name in tables)
    return dict(zip(tables, pl.collect_all(list(frames), engine="streaming"), strict=True))
