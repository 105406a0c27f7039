"""Sources -> shards of a dataset's next version: read what is new, build what it touches.

A first build is the case where everything is new. What it does not touch stays in the files where
it is; a run that is built again leaves the rows that have not changed where they are, so that a
reward that came late rewrites no message.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl

from starpo_trace.convert.changes import compare_files, find_touched_traces
from starpo_trace.convert.columns import build_frame, polars_schema
from starpo_trace.convert.executors import run_tasks
from starpo_trace.convert.forgotten import Forgotten
from starpo_trace.convert.index import Index, empty_index
from starpo_trace.convert.otlp import MalformedSpan
from starpo_trace.convert.reading import FileReading, Reading, plan_reading, read_files
from starpo_trace.convert.recipe import NO_RECIPE, Recipe
from starpo_trace.convert.rewards import DEFAULT_TRUST, Trust
from starpo_trace.convert.routing import find_named_spans, plan_partitions
from starpo_trace.convert.shards import (
    OF_TRAJECTORIES,
    PartitionTask,
    Shard,
    ShardFile,
    build_shard,
    describe_rejected,
    write_shard_file,
)
from starpo_trace.convert.sources import SourceFile, note_runs
from starpo_trace.schema import REJECTED, TRAJECTORIES

Progress = Callable[[str, int, int | None], None]
"""Stage, how much is done, and of how much if that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who does the work."""

    executor: str = "serial"
    """One of `starpo_trace.convert.executors.EXECUTORS`."""
    num_workers: int | None = None
    """How many at a time; None: the CPUs there are."""
    progress: Progress | None = None
    """Told what is done."""

    def run(self, function: Any, tasks: Sequence[Any], stage: str) -> Iterator[Any]:
        """Results in the order of the tasks."""
        self.report(stage, 0, len(tasks))
        results = run_tasks(function, tasks, executor=self.executor, num_workers=self.num_workers)
        for done, result in enumerate(results, start=1):
            yield result
            self.report(stage, done, len(tasks))

    def report(self, stage: str, done: int, total: int | None) -> None:
        """Tell whoever listens."""
        if self.progress is not None:
            self.progress(stage, done, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What decides what spans become."""

    trust: Trust = DEFAULT_TRUST
    """Which rewards count."""
    content_folders: tuple[Path, ...] = ()
    """Folders, beside the sources' own, that messages may be read from which spans only name."""
    forgotten: Forgotten = field(default_factory=Forgotten)
    """Who is left out."""
    recipe: Recipe = NO_RECIPE
    """What rewards make, and how turns are shaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastBuild:
    """What the dataset holds before the build."""

    index: Index = field(default_factory=empty_index)
    """Its traces."""
    sources: Sequence[Mapping[str, Any]] = ()
    """Its manifest's `sources`."""
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its manifest's `shards`."""
    tables: Mapping[str, Path] = field(default_factory=dict)
    """Folder of each table."""
    trajectories: pl.DataFrame | None = None
    """Its trajectories."""


@dataclass(slots=True, kw_only=True)
class NextBuild:
    """What the next version holds."""

    index: Index
    """Its traces."""
    sources: list[dict[str, Any]]
    """Its manifest's `sources`."""
    shards: dict[str, dict[str, Any]]
    """Its manifest's `shards`: per shard `files` (name by table) and what is known of `rejected`."""
    added: dict[str, list[ShardFile]]
    """New files of each table but `trajectories`, in the build's folder."""
    trajectories: pl.DataFrame
    """All trajectories."""
    num_rebuilt: int
    """Spans that were built, again or for the first time."""


def build_shards(
    files: Sequence[SourceFile],
    last: LastBuild,
    folder: Path,
    *,
    options: BuildOptions,
    workers: Workers,
) -> NextBuild:
    """Source files and the last build -> the next, with its new files in `folder`.

    Raises:
        SourceError: a file cannot be read or holds no spans of a known form.
    """
    note_runs(files)
    changes = compare_files(files, last.sources)
    readings = list(
        workers.run(
            read_files,
            plan_reading(changes.new, folder / "chunks", content_folders=options.content_folders),
            "reading",
        )
    )
    routes = [routes for reading in readings for _, routes in reading.chunks]
    named = find_named_spans(
        [path for reading in readings for path, _ in reading.chunks],
        [last.index.keys, *(each.keys for each in routes)],
        _scan_last_spans(last),
    )
    touched: frozenset[str] | None = frozenset()
    if changes.gone or routes:
        touched = find_touched_traces(last.index, changes.gone, routes, named, options.forgotten)
    if touched is None:
        return build_shards(files, LastBuild(), folder / "all", options=options, workers=workers)
    again = _list_files_of(touched, last.index, changes.unchanged)
    rereadings = list(
        workers.run(
            read_files,
            plan_reading(
                again, folder / "again", traces=touched, content_folders=options.content_folders
            ),
            "reading again",
        )
    )
    chunks = [chunk for reading in (*readings, *rereadings) for chunk in reading.chunks]
    token = uuid4().hex[:12]
    tasks = [
        PartitionTask(
            plan=plan,
            trust=options.trust,
            forgotten=options.forgotten,
            recipe=options.recipe,
            folder=folder / "tables",
            name=f"{token}-{plan.number:06d}",
        )
        for plan in (plan_partitions(chunks, [named]) if chunks else ())
    ]
    shards: list[Shard] = list(workers.run(build_shard, tasks, "building"))
    # A segment may have been sealed, under another name, while it was read.
    paths = {number: file.name for number, file in again} | {
        file.number: file.fingerprint.path for reading in readings for file in reading.files
    }
    merged = _merge(last, shards, touched, folder / "tables", token)
    merged.sources = [
        *(dict(entry) for _, _, entry in changes.unchanged),
        *(_describe_source(file, files) for reading in readings for file in reading.files),
    ]
    merged.sources.sort(key=lambda entry: entry["path"])
    merged.index = _update_index(
        last.index,
        merged.index,
        touched,
        changes.gone,
        readings,
        rereadings,
        paths,
        options.forgotten,
    )
    return merged


def _scan_last_spans(last: LastBuild) -> pl.LazyFrame | None:
    """`trace_id`, `span_id` of the last build's spans; a rejected one may be used in the next."""
    tables = []
    for name in ("spans", "rejected"):
        entries = [entry["files"] for entry in last.shards.values()]
        files = [last.tables[name] / entry[name] for entry in entries if name in entry]
        if files:
            tables.append(pl.scan_parquet(files, glob=False).select("trace_id", "span_id"))
    return pl.concat(tables) if tables else None


def _list_files_of(
    traces: frozenset[str],
    index: Index,
    unchanged: Sequence[tuple[int, SourceFile, Mapping[str, Any]]],
) -> list[tuple[int, SourceFile]]:
    """Unchanged files that hold spans of these traces."""
    wanted = set(index.routes.filter(pl.col("trace_id").is_in(list(traces)))["file"].unique())
    return [(number, file) for number, file, _ in unchanged if file.name in wanted]


def _describe_source(reading: FileReading, files: Sequence[SourceFile]) -> dict[str, Any]:
    fingerprint = reading.fingerprint
    of_object = {} if fingerprint.etag is None else {"etag": fingerprint.etag}
    return {
        "path": fingerprint.path,
        "source": files[reading.number].source,
        "bytes": fingerprint.num_bytes,
        "sha256": fingerprint.sha256,
        "changed_ns": fingerprint.changed_ns,
        **of_object,
        "spans": reading.num_spans,
        "malformed": len(reading.malformed),
        "damaged": reading.num_damaged,
        "damage": list(reading.damage),
    }


def _merge(
    last: LastBuild, shards: Sequence[Shard], touched: frozenset[str], folder: Path, token: str
) -> NextBuild:
    """Old shards without what was built again, and the new ones without what has not changed."""
    old = _trajectories_of(last, touched)
    before = last.index.contents.filter(pl.col("trajectory_id").is_in(old.implode()))
    new = _concat_contents(shards)
    same = before.join(new, on=["trajectory_id", "table", "hash"], how="semi").select(
        "trajectory_id", "table", "shard"
    )
    changed = before.join(same, on=["trajectory_id", "table"], how="anti")
    added: dict[str, list[ShardFile]] = {name: [] for name in (*OF_TRAJECTORIES, "rejected")}
    kept = _drop_from_old(last, changed, touched, folder, token, added)
    fresh = _drop_from_new(shards, same, added)
    contents = pl.concat(
        [
            last.index.contents.join(changed, on=["trajectory_id", "table", "shard"], how="anti"),
            new.join(same, on=["trajectory_id", "table"], how="anti"),
        ]
    )
    trajectories = _merge_trajectories(last, shards, old)
    traces = pl.concat(
        [
            last.index.traces.filter(~pl.col("trace_id").is_in(list(touched))),
            *(
                shard.traces.select(
                    "trace_id", pl.lit(shard.name).alias("shard"), "num_spans", "num_duplicates"
                )
                for shard in shards
            ),
        ]
    )
    return NextBuild(
        index=Index(
            traces=traces,
            routes=last.index.routes,
            keys=last.index.keys,
            names=pl.concat(
                [
                    last.index.names.filter(~pl.col("trace_id").is_in(list(touched))),
                    *(shard.names for shard in shards),
                ]
            ),
            contents=contents,
            malformed=last.index.malformed,
        ),
        sources=[],
        shards={**kept, **fresh},
        added=added,
        trajectories=trajectories,
        num_rebuilt=int(sum(shard.traces["num_spans"].sum() for shard in shards)),
    )


def _trajectories_of(last: LastBuild, touched: frozenset[str]) -> pl.Series:
    """Trajectories of the last version that are built again, or are no more."""
    if last.trajectories is None:
        return pl.Series("trajectory_id", [], dtype=pl.String)
    of_touched = pl.col("trace_id").is_in(list(touched))
    return last.trajectories.filter(of_touched)["trajectory_id"]


def _concat_contents(shards: Sequence[Shard]) -> pl.DataFrame:
    frames = [
        shard.contents.select("trajectory_id", "table", pl.lit(shard.name).alias("shard"), "hash")
        for shard in shards
    ]
    return pl.concat([empty_index().contents, *frames])


def _drop_from_old(
    last: LastBuild,
    changed: pl.DataFrame,
    touched: frozenset[str],
    folder: Path,
    token: str,
    added: dict[str, list[ShardFile]],
) -> dict[str, dict[str, Any]]:
    """Old shards -> their entries, where files lost rows named anew; those files go to `added`."""
    kept: dict[str, dict[str, Any]] = {}
    gone = {
        (str(shard), str(table)): ids
        for (shard, table), ids in changed.group_by(["shard", "table"])
    }
    traces = last.index.traces.filter(pl.col("trace_id").is_in(list(touched)))
    touched_shards = set(traces["shard"])
    for number, (name, entry) in enumerate(last.shards.items()):
        files, rejected = dict(entry["files"]), entry["rejected"]
        for table in OF_TRAJECTORIES:
            if (name, table) in gone:
                lost = gone[name, table].select("trajectory_id")
                rows = pl.read_parquet(last.tables[table] / files.pop(table), glob=False)
                rows = rows.join(lost, on="trajectory_id", how="anti", maintain_order="left")
                _keep_rows(rows, folder / table / f"{token}-k{number:06d}.parquet", files, added)
        if name in touched_shards and "rejected" in files:
            rows = pl.read_parquet(last.tables["rejected"] / files["rejected"], glob=False)
            left = rows.filter(~pl.col("trace_id").is_in(list(touched)))
            if left.height < rows.height:
                del files["rejected"]
                path = folder / "rejected" / f"{token}-k{number:06d}.parquet"
                _keep_rows(left, path, files, added)
                rejected = _rejected_entry(left)
        if files or rejected["by_reason"]:
            kept[name] = {"files": files, "rejected": rejected}
    return kept


def _keep_rows(
    rows: pl.DataFrame, path: Path, files: dict[str, str], added: dict[str, list[ShardFile]]
) -> None:
    if rows.height:
        table = path.parent.name
        added[table].append(write_shard_file(rows, path))
        files[table] = path.name


def _rejected_entry(rows: pl.DataFrame) -> dict[str, Any]:
    rejected = describe_rejected(rows)
    return {"by_reason": rejected.by_reason, "digest": rejected.digest}


def _drop_from_new(
    shards: Sequence[Shard], same: pl.DataFrame, added: dict[str, list[ShardFile]]
) -> dict[str, dict[str, Any]]:
    """New shards -> their entries, without rows that an old one holds; their files to `added`."""
    entries: dict[str, dict[str, Any]] = {}
    unchanged = {
        str(table): ids.select("trajectory_id") for (table,), ids in same.group_by(["table"])
    }
    for shard in shards:
        files: dict[str, str] = {}
        for table, file in shard.files.items():
            if table == "trajectories":
                continue
            if table in unchanged:
                rows = pl.read_parquet(file.path, glob=False)
                left = rows.join(
                    unchanged[table], on="trajectory_id", how="anti", maintain_order="left"
                )
                if left.height < rows.height:
                    file.path.unlink()
                    _keep_rows(left, file.path, files, added)
                    continue
            added[table].append(file)
            files[table] = file.path.name
        rejected = {"by_reason": shard.rejected.by_reason, "digest": shard.rejected.digest}
        if files or rejected["by_reason"]:
            entries[shard.name] = {"files": files, "rejected": rejected}
    return entries


def _merge_trajectories(last: LastBuild, shards: Sequence[Shard], old: pl.Series) -> pl.DataFrame:
    frames = [pl.DataFrame(schema=polars_schema(TRAJECTORIES))]
    if last.trajectories is not None:
        frames.append(last.trajectories.filter(~pl.col("trajectory_id").is_in(old.implode())))
    frames += [
        pl.read_parquet(shard.files["trajectories"].path, glob=False)
        for shard in shards
        if "trajectories" in shard.files
    ]
    return pl.concat(frames).sort("trajectory_id")


def _update_index(
    last: Index,
    built: Index,
    touched: frozenset[str],
    gone: Sequence[str],
    readings: Sequence[Reading],
    rereadings: Sequence[Reading],
    paths: Mapping[int, str],
    forgotten: Forgotten,
) -> Index:
    """Index of the next version: routes and keys of what was read replace those of before."""
    is_old = pl.col("trace_id").is_in(list(touched))
    chunks = [routes for each in (*readings, *rereadings) for _, routes in each.chunks]
    files = pl.DataFrame(
        {"number": list(paths), "path": list(paths.values())},
        schema={"number": pl.Int64, "path": pl.String},
    )
    routes = [
        each.traces.join(files, left_on="file", right_on="number").select(
            "trace_id", pl.col("path").alias("file")
        )
        for each in chunks
    ]
    malformed = [
        build_frame(
            [{"file": paths[file.number], **_malformed_row(span)} for span in file.malformed],
            {"file": "str", **REJECTED},
        )
        for reading in readings
        for file in reading.files
        if file.malformed
    ]
    return Index(
        traces=built.traces,
        routes=pl.concat([last.routes.filter(~is_old), *routes]).unique(),
        keys=pl.concat(
            [last.keys.filter(~is_old), *(forgotten.hide(each.keys) for each in chunks)]
        ).unique(),
        names=built.names,
        contents=built.contents,
        malformed=pl.concat([last.malformed.filter(~pl.col("file").is_in(list(gone))), *malformed]),
    )


def _malformed_row(span: MalformedSpan) -> dict[str, Any]:
    return {
        "source": span.source,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "name": span.name,
        "scope": span.scope,
        "reason": "malformed_span",
        "detail": span.detail,
    }
