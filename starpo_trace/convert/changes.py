"""Sources now, and what the last build read -> which files are new, and which traces they touch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from starpo_trace.convert.forgotten import Forgotten
from starpo_trace.convert.index import Index
from starpo_trace.convert.routing import Routes, find_components
from starpo_trace.convert.sources import SourceFile, fingerprint_file

_MOST: Final = 0.5
"""Share of the traces from which it is quicker to build everything again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanges:
    """Files of the sources, each with its number in this build."""

    unchanged: list[tuple[int, SourceFile, Mapping[str, Any]]]
    """Files that the last build read as they are, with their entries in its manifest."""
    new: list[tuple[int, SourceFile]]
    """Files that it did not read, or that have changed."""
    gone: list[str]
    """Paths that it read and that are no more, or no more the same."""


def compare_files(files: Sequence[SourceFile], known: Sequence[Mapping[str, Any]]) -> FileChanges:
    """Files of the sources and the last manifest's `sources` -> what has changed.

    A file is unchanged when its size and time are, or else its hash; an object when its size and
    ETag are, or its time where the store gives no ETag.
    """
    entries = {entry["path"]: entry for entry in known}
    unchanged, new, seen = [], [], set()
    for number, file in enumerate(files):
        entry = entries.get(file.name)
        if entry is not None and entry["source"] == file.source and _is_unchanged(file, entry):
            unchanged.append((number, file, entry))
            seen.add(entry["path"])
        else:
            new.append((number, file))
    return FileChanges(
        unchanged=unchanged, new=new, gone=[path for path in entries if path not in seen]
    )


def _is_unchanged(file: SourceFile, entry: Mapping[str, Any]) -> bool:
    if file.stored is not None:
        now = file.stored
        if now.num_bytes != entry["bytes"]:
            return False
        if now.etag is None:
            return now.changed_ns == entry["changed_ns"]
        return now.etag == entry.get("etag")
    try:
        found = file.path.stat()
    except OSError:
        return False
    if found.st_size != entry["bytes"]:
        return False
    return (
        found.st_mtime_ns == entry["changed_ns"]
        or fingerprint_file(file.path).sha256 == entry["sha256"]
    )


def find_touched_traces(
    index: Index,
    gone: Sequence[str],
    routes: Sequence[Routes],
    more_keys: pl.DataFrame,
    forgotten: Forgotten,
) -> frozenset[str] | None:
    """Last index, files that are gone, routes of what was read, keys -> traces to build again.

    The index has hashes in place of keys once anybody was `forgotten`. All traces that any key ties to a touched one are among them.

    Returns:
        The traces, or None when it is quicker to build everything.
    """
    of_gone = index.routes.filter(pl.col("file").is_in(list(gone)))["trace_id"]
    seeds = pl.concat([of_gone, *(each.traces["trace_id"] for each in routes)]).unique()
    keys = [index.keys, more_keys, *(forgotten.hide(each.keys) for each in routes)]
    components = find_components(keys)
    every = pl.concat([index.traces["trace_id"], seeds]).unique().alias("trace_id").to_frame()
    placed = every.join(components, on="trace_id", how="left").with_columns(
        component=pl.coalesce("component", "trace_id")
    )
    hit = placed.filter(pl.col("trace_id").is_in(seeds.implode())).select("component").unique()
    touched = placed.join(hit, on="component", how="semi")["trace_id"]
    num_old = index.traces.filter(pl.col("trace_id").is_in(touched.implode())).height
    if num_old > _MOST * index.traces.height:
        return None
    return frozenset(touched)
