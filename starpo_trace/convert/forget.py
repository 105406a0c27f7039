"""Dataset and the ids of people or runs -> a version without them, and no other version.

Deleting reaches every table and every version that was kept: their files are removed, and a pin on
one of them says that it is void. What is forgotten stays so: later builds of the same sources leave
it out. The sources themselves are not touched.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from starpo_trace.convert.build import LastBuild, NextBuild
from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.dataset import commit_build, read_last_build
from starpo_trace.convert.deltalog import commit_table
from starpo_trace.convert.forgotten import KINDS, Forgotten, blank_rejected, reject_spans
from starpo_trace.convert.manifest import (
    BUILD_FOLDER,
    Manifest,
    lock_output,
    read_forgotten,
    read_manifest,
    undo_unfinished,
    write_manifest,
)
from starpo_trace.convert.recipe import Recipe
from starpo_trace.convert.recipe.reading import build_recipe
from starpo_trace.convert.shards import (
    OF_TRAJECTORIES,
    ShardFile,
    describe_rejected,
    write_shard_file,
)
from starpo_trace.errors import ConfigError
from starpo_trace.schema import DATASET_SCHEMA_VERSION, REJECTED, VERSIONS_FOLDER


def forget(dataset: Path, named: Sequence[tuple[str, str]]) -> tuple[Manifest, int]:
    """Delete the runs of users, conversations and trajectories, for good.

    Args:
        dataset: a dataset's folder.
        named: kind (`user`, `conversation` or `trajectory`) and id of each.

    Returns:
        The manifest of the new and only version, and how many trajectories are gone.

    Raises:
        DatasetError: no dataset is there, or it cannot be written.
        ConfigError: nobody is named, or a kind is none.
    """
    if not named:
        raise ConfigError("nobody is named; give a user, a conversation or a trajectory")
    if unknown := sorted({kind for kind, _ in named} - set(KINDS)):
        raise ConfigError(f"{', '.join(unknown)} cannot be forgotten; use {', '.join(KINDS)}")
    read_manifest(dataset)  # what is no dataset is refused before anything is touched
    with lock_output(dataset), undo_unfinished(dataset):
        manifest = read_manifest(dataset)
        last = read_last_build(dataset, manifest)
        forgotten = read_forgotten(dataset)
        for kind, name in named:
            forgotten = forgotten.add(kind, name)
        built, num_gone = _build_without(last, forgotten, dataset / BUILD_FOLDER / "tables")
        recipe = _read_recipe(manifest)
        manifest = commit_build(dataset, built, manifest.parameters, manifest, forgotten, recipe)
        remove_other_versions(dataset, manifest, "what it held was deleted on request")
    return manifest, num_gone


def remove_other_versions(dataset: Path, manifest: Manifest, reason: str) -> int:
    """Remove the files of all versions but the manifest's; their number.

    Pins on the others are void from then on, and say so with the reason.
    """
    from deltalake import DeltaTable

    num_removed = 0
    for entry in manifest.tables.values():
        folder = dataset / entry["path"]
        num_before = _count_files(folder)  # `vacuum` also names files that went long ago
        DeltaTable(str(folder)).vacuum(
            retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True
        )
        num_removed += num_before - _count_files(folder)
    for file in (dataset / VERSIONS_FOLDER).glob("*.json"):
        if file.stem != manifest.digest:
            void = {"schema_version": DATASET_SCHEMA_VERSION, "digest": file.stem, "void": reason}
            file.write_text(json.dumps(void))
    return num_removed


def _count_files(table: Path) -> int:
    return sum(1 for _ in table.glob("*.parquet"))


def vacuum(dataset: Path) -> int:
    """Remove all versions of a dataset but the last; the number of files removed.

    Raises:
        DatasetError: no dataset is there, or another build is writing it.
    """
    read_manifest(dataset)
    with lock_output(dataset), undo_unfinished(dataset):
        manifest = _restore_tables(dataset, read_manifest(dataset))
        return remove_other_versions(dataset, manifest, "it was removed to save space")


def _restore_tables(dataset: Path, manifest: Manifest) -> Manifest:
    """Make the manifest's versions the last ones, where a killed build left later ones."""
    tables = {
        name: commit_table(dataset / entry["path"], name, [], entry["files"])
        for name, entry in manifest.tables.items()
    }
    if tables != manifest.tables:
        manifest = replace(manifest, tables=tables)
        write_manifest(dataset, manifest)
    return manifest


def _read_recipe(manifest: Manifest) -> Recipe | None:
    """The recipe of the last build; None where expressions of Python's cannot be read back."""
    try:
        return build_recipe({**manifest.parameters["recipe"], "shaping": {}})
    except (ConfigError, KeyError):
        return None


def _build_without(last: LastBuild, forgotten: Forgotten, folder: Path) -> tuple[NextBuild, int]:
    """The last build without the forgotten: only files that hold rows of theirs are written anew."""
    trajectories = last.trajectories
    assert trajectories is not None  # noqa: S101 (a dataset that was read has them)
    gone, traces = forgotten.find(last.index.names)
    is_gone = pl.col("trajectory_id").is_in(gone.implode())
    added: dict[str, list[ShardFile]] = {name: [] for name in (*OF_TRAJECTORIES, "rejected")}
    shards = {}
    for name, entry in last.shards.items():
        files = dict(entry["files"])
        path = {table: folder / table / f"forgot-{os.urandom(6).hex()}.parquet" for table in added}
        tables = {
            table: pl.read_parquet(last.tables[table] / files[table], glob=False) for table in files
        }
        left = {t: rows.filter(~is_gone) for t, rows in tables.items() if t != "rejected"}
        was_rejected = tables.get("rejected", pl.DataFrame(schema=polars_schema(REJECTED)))
        # What did not change in an update stays in the shard where it was, apart from its spans.
        is_held = any(rows.height < tables[table].height for table, rows in left.items())
        if not is_held and not was_rejected["trace_id"].is_in(traces.implode()).any():
            shards[name] = entry
            continue
        rejected = [blank_rejected(was_rejected, traces)]
        if "spans" in tables:
            rejected.append(reject_spans(tables["spans"].filter(is_gone)))
        left["rejected"] = pl.concat(rejected).sort("trace_id", "span_id")
        for table, rows in left.items():
            if table in tables and table != "rejected" and rows.height == tables[table].height:
                continue
            files.pop(table, None)
            if rows.height:
                added[table].append(write_shard_file(rows, path[table]))
                files[table] = path[table].name
        summary = describe_rejected(left["rejected"])
        shards[name] = {
            "files": files,
            "rejected": {"by_reason": summary.by_reason, "digest": summary.digest},
        }
    built = NextBuild(
        index=replace(
            last.index,
            keys=forgotten.hide(last.index.keys),
            names=last.index.names.filter(~is_gone),
            contents=last.index.contents.filter(~is_gone),
        ),
        sources=[dict(entry) for entry in last.sources],
        shards=shards,
        added=added,
        trajectories=trajectories.filter(~is_gone),
        num_rebuilt=0,
    )
    return built, trajectories.height - built.trajectories.height
