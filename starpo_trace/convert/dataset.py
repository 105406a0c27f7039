"""Span sources -> trajectory dataset, with every span accounted for.

source files --reading--> chunks on disk --routing--> partitions --shards--> Parquet files
--merge with the last build--> versions of the Delta tables --> manifest.json
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import polars as pl

from starpo_trace.convert.build import (
    BuildOptions,
    LastBuild,
    NextBuild,
    Progress,
    Workers,
    build_shards,
)
from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.curation import curate_trajectories, summarise_curation
from starpo_trace.convert.deltalog import commit_table
from starpo_trace.convert.executors import EXECUTORS
from starpo_trace.convert.forgotten import Forgotten
from starpo_trace.convert.index import read_index, remove_old_index, write_index
from starpo_trace.convert.manifest import (
    BUILD_FOLDER,
    Accounting,
    Manifest,
    check_output,
    lock_output,
    read_forgotten,
    read_manifest,
    scan_table,
    undo_unfinished,
    write_manifest,
)
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.partition import build_partition
from starpo_trace.convert.recipe import (
    NO_RECIPE,
    Recipe,
    SplitRules,
    check_recipe,
    describe_recipe,
    digest_partition_rules,
    read_recipe,
)
from starpo_trace.convert.rewards import DEFAULT_TRUST, SIGNATURE_STATES, TRUST_SOURCES, Trust
from starpo_trace.convert.shards import SORT_KEYS, sum_hashes, write_shard_file
from starpo_trace.convert.sources import find_source_files
from starpo_trace.convert.staging import stage_rows
from starpo_trace.errors import ConfigError, DatasetError, SourceError
from starpo_trace.guard import warn
from starpo_trace.schema import MANIFEST_FILE, REJECTED, REWARD_SOURCES, TABLES
from starpo_trace.signing import Keyring, read_keyring

__all__ = [
    "EXECUTORS",
    "TRUST_SOURCES",
    "Conversion",
    "Progress",
    "build_dataset",
    "convert_sources",
    "read_manifest",
    "scan_table",
]

_SPOOL: Final = "objects"
"""Folder, in the build's, of the copies of objects."""
_NOT_INCREMENTAL: Final = frozenset({"test_fraction", "recipe"})
"""Parameters that change no shard, only the trajectories' table, which every build writes anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A dataset that is not written yet."""

    tables: dict[str, pl.DataFrame]
    """The tables of `starpo_trace.schema`, sorted."""
    accounting: Accounting
    """Where every span went."""
    sources: list[dict[str, Any]]
    """The files read, as the manifest describes them."""


def build_dataset(  # noqa: PLR0913 (what a user may choose, all of it by name)
    sources: Sequence[Path | str],
    output: Path,
    *,
    test_fraction: float = 0.0,
    trust_sources: Sequence[str] = TRUST_SOURCES,
    reward_keys: str | Path | Keyring | None = None,
    require_signed: bool | None = None,
    content_folders: Sequence[Path] = (),
    recipe: Path | Recipe | None = None,
    full: bool = False,
    executor: str = "serial",
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Stores and span files -> dataset folder at `output`, as a new version if there is one.

    A dataset of the same parameters is brought up to date: files that it has read are not read
    again, but for runs that new spans and rewards touch. The result is that of a full build.

    Args:
        sources: trace store folders, segment files, OTLP files or folders of them; the same in a
            bucket, as text (`s3://bucket/prefix`).
        output: the dataset's folder, new or an earlier dataset.
        test_fraction: share of the tasks (by hash of the task id) whose trajectories form the
            split `test`; trajectories without a task are always `train`. A recipe says it as
            `splits.test`.
        trust_sources: reward sources that count.
        reward_keys: key file or keyring that reward signatures are checked with.
        require_signed: whether unsigned rewards count for nothing; default: when there are keys.
        content_folders: folders that messages may be read from which spans only name; the
            folders of the sources always are.
        recipe: recipe file, or a recipe: what rewards make, shaping, groups, splits, what is
            left out.
        full: read and build everything again.
        executor: `serial`, `process` or `ray`; see `starpo_trace.convert.executors`.
        num_workers: processes, or Ray tasks at a time; default: the CPUs there are.
        progress: called with a stage, how much of it is done, and of how much (None: not known).

    Raises:
        SourceError: a source does not exist, is empty or holds no spans.
        DatasetError: `output` holds something else, or cannot be written.
        ConfigError: `test_fraction` is not within [0, 1], a trusted source is none, the keys
            cannot be read or are missing, the recipe cannot be used, a content folder is not there,
            or the executor is none.
    """
    if not 0.0 <= test_fraction <= 1.0:
        raise ConfigError(f"test_fraction is {test_fraction}; it must be between 0 and 1")
    if unknown := sorted(set(trust_sources) - set(REWARD_SOURCES)):
        raise ConfigError(
            f"trust_sources has {', '.join(unknown)}; use {', '.join(REWARD_SOURCES)}"
        )
    if executor not in EXECUTORS:
        raise ConfigError(f"executor {executor!r} is none of {', '.join(EXECUTORS)}")
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}; at least one must do the work")
    if missing := [str(folder) for folder in content_folders if not folder.is_dir()]:
        raise ConfigError(f"content folder {missing[0]}: no such folder; name where messages lie")
    trust = _decide_trust(trust_sources, reward_keys, require_signed=require_signed)
    rules = resolve_recipe(recipe, test_fraction)
    parameters = {
        "test_fraction": test_fraction,
        "trust_sources": list(trust_sources),
        "reward_keys": [] if trust.keyring is None else trust.keyring.key_ids,
        "require_signed": trust.require_signed,
        "content_folders": sorted(map(str, content_folders)),
        "partition_rules": _name_partition_rules(rules),
        "recipe": describe_recipe(rules),
    }
    check_output(output)
    files = find_source_files(sources, spool=output / BUILD_FOLDER / _SPOOL)
    _refuse_odd_names([output, *(file.path for file in files)])
    workers = Workers(executor=executor, num_workers=num_workers, progress=progress)
    with lock_output(output), undo_unfinished(output):
        manifest = None if full else _read_last(output, parameters)
        forgotten = read_forgotten(output)
        built = build_shards(
            files,
            LastBuild() if manifest is None else read_last_build(output, manifest),
            # A folder of its own: workers of a killed build may still write into theirs.
            output / BUILD_FOLDER / uuid4().hex[:12],
            options=BuildOptions(
                trust=trust,
                content_folders=tuple(content_folders),
                forgotten=forgotten,
                recipe=rules,
            ),
            workers=workers,
        )
        _refuse_empty(built, sources)
        manifest = commit_build(output, built, parameters, manifest, forgotten, rules)
        workers.report("written", sum(manifest.counts.values()), None)
    return manifest


def convert_sources(
    sources: Sequence[Path | str], *, trust: Trust = DEFAULT_TRUST, recipe: Recipe = NO_RECIPE
) -> Conversion:
    """Stores and span files -> tables in memory; see `build_dataset`."""
    with TemporaryDirectory(prefix="starpo-") as folder:
        files = find_source_files(sources, spool=Path(folder) / _SPOOL)
        _refuse_odd_names([file.path for file in files])
        built = build_shards(
            files,
            LastBuild(),
            Path(folder),
            options=BuildOptions(trust=trust, recipe=recipe),
            workers=Workers(),
        )
        _refuse_empty(built, sources)
        tables = {"trajectories": curate_trajectories(built.trajectories, recipe)}
        for name, added in built.added.items():
            frames = [pl.DataFrame(schema=polars_schema(TABLES[name]))]
            frames += [pl.read_parquet(file.path, glob=False) for file in added]
            tables[name] = pl.concat(frames)
    tables["rejected"] = pl.concat([tables["rejected"], built.index.malformed.select(*REJECTED)])
    return Conversion(
        tables={name: tables[name].sort(SORT_KEYS[name], nulls_last=True) for name in TABLES},
        accounting=_count_spans(built),
        sources=built.sources,
    )


def convert_rows(
    rows: Sequence[SpanRow], *, trust: Trust = DEFAULT_TRUST, recipe: Recipe = NO_RECIPE
) -> dict[str, pl.DataFrame]:
    """Span rows -> tables; `rejected` has one row per span that is not used."""
    return build_partition([stage_rows(rows)], trust=trust, recipe=recipe).tables


def _refuse_odd_names(paths: Sequence[Path]) -> None:
    """Tables and manifest name files, and hold UTF-8 only."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{str(path)!a}: the name is not UTF-8; rename it") from error


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


def _name_partition_rules(recipe: Recipe) -> str:
    """Equal for recipes that make equal partitions; of expressions made in Python nobody can tell."""
    rules = recipe.shaping.values()
    is_told = not any(isinstance(each, pl.Expr) for r in rules for each in (r.expr, r.potential))
    return digest_partition_rules(recipe) if is_told else uuid4().hex


def _read_last(output: Path, parameters: dict[str, Any]) -> Manifest | None:
    """Manifest of the dataset that a build may bring up to date; None where it cannot be."""
    if not (output / MANIFEST_FILE).is_file():
        return None
    with suppress(DatasetError):  # of another version: everything is read again
        manifest = read_manifest(output)
        is_same = all(
            manifest.parameters.get(name) == value
            for name, value in parameters.items()
            if name not in _NOT_INCREMENTAL
        )
        return manifest if is_same and manifest.starpo_version == version("starpo") else None
    return None


def read_last_build(dataset: Path, manifest: Manifest) -> LastBuild:
    """Dataset and its manifest -> what it holds.

    Raises:
        DatasetError: a file is missing or was changed.
    """
    return LastBuild(
        index=read_index(dataset, manifest.index),
        sources=manifest.sources,
        shards=manifest.shards,
        tables={name: dataset / entry["path"] for name, entry in manifest.tables.items()},
        trajectories=scan_table(dataset, "trajectories").collect(),
    )


def _refuse_empty(built: NextBuild, sources: Sequence[Path | str]) -> None:
    if any(entry["spans"] or entry["malformed"] for entry in built.sources):
        return
    num_damaged = sum(entry["damaged"] for entry in built.sources)
    first = next(iter(_list_damage(built.sources)), "")
    raise SourceError(
        f"{', '.join(map(str, sources))}: no spans in {len(built.sources)} file(s)"
        + (f", {num_damaged} damaged record(s) ({first})" if num_damaged else "")
        + "; has the agent run with tracing on, and was it flushed?"
    )


def _list_damage(sources: Sequence[dict[str, Any]]) -> list[str]:
    """A manifest's `sources` -> what is wrong with the first damaged record of each file."""
    return [f"{entry['path']}: {entry['damage'][0]}" for entry in sources if entry.get("damage")]


def commit_build(
    output: Path,
    built: NextBuild,
    parameters: dict[str, Any],
    last: Manifest | None,
    forgotten: Forgotten,
    recipe: Recipe | None,
) -> Manifest:
    """Files of a build -> versions of the tables, and the manifest that makes them one.

    Without a recipe the trajectories keep their labels.
    """
    if recipe is not None:
        built.trajectories = curate_trajectories(built.trajectories, recipe)
    folder = output / BUILD_FOLDER / "tables"
    token = uuid4().hex[:12]
    if built.index.malformed.height:
        malformed = built.index.malformed.select(*REJECTED).sort(SORT_KEYS["rejected"])
        file = write_shard_file(malformed, folder / "rejected" / f"{token}-malformed.parquet")
        built.added["rejected"].append(file)
    built.added["trajectories"] = [
        write_shard_file(built.trajectories, folder / "trajectories" / f"{token}.parquet")
    ]
    tables = {}
    for name in TABLES:
        new = {file.path.name for file in built.added[name]}
        names = {entry["files"].get(name) for entry in built.shards.values()} - new - {None}
        hashes = {} if last is None else last.tables[name]["files"]
        kept = {name: hashes[name] for name in names}
        tables[name] = commit_table(output / name, name, built.added[name], kept)
    accounting = _count_spans(built)
    manifest = Manifest(
        starpo_version=version("starpo"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parameters=parameters,
        sources=built.sources,
        counts=_count_rows(output, tables),
        accounting=accounting,
        tables=tables,
        usable_for=_count_values(built.trajectories["usable_for"], ("rl", "sft", "none")),
        signatures=_count_values(
            _read_column(output, tables, "rewards", "signature"), SIGNATURE_STATES
        ),
        curation=summarise_curation(
            built.trajectories,
            recipe or NO_RECIPE,
            _read_column(output, tables, "rewards", "name"),
        ),
        digest=_digest(built),
        shards=built.shards,
        index=write_index(output, built.index, token),
        forgotten=forgotten.as_entry(),
    )
    write_manifest(output, manifest)
    remove_old_index(output, manifest.index)
    return manifest


def _count_spans(built: NextBuild) -> Accounting:
    rejected = Counter[str]()
    for entry in built.shards.values():
        rejected.update(entry["rejected"]["by_reason"])
    num_malformed = built.index.malformed.height
    if num_malformed:
        rejected["malformed_span"] += num_malformed
    num_read = int(built.index.traces["num_spans"].sum()) + num_malformed
    num_duplicates = int(built.index.traces["num_duplicates"].sum())
    return Accounting(
        spans_read=num_read,
        spans_used=num_read - num_duplicates - rejected.total(),
        spans_rejected_by_reason=dict(sorted(rejected.items())),
        duplicates=num_duplicates,
        damaged_records=sum(entry["damaged"] for entry in built.sources),
        damage=_list_damage(built.sources),
    )


def _count_rows(output: Path, tables: dict[str, dict[str, Any]]) -> dict[str, int]:
    counts = {}
    for name, entry in tables.items():
        files = [output / entry["path"] / file for file in entry["files"]]
        scan = pl.scan_parquet(files, glob=False) if files else None
        counts[name] = int(scan.select(pl.len()).collect().item()) if scan is not None else 0
    return counts


def _read_column(
    output: Path, tables: dict[str, dict[str, Any]], name: str, column: str
) -> pl.Series:
    files = [output / tables[name]["path"] / file for file in tables[name]["files"]]
    if not files:
        return pl.Series(column, [], dtype=pl.String)
    return pl.scan_parquet(files, glob=False).select(column).collect()[column]


def _count_values(values: pl.Series, names: Sequence[str]) -> dict[str, int]:
    counts = Counter(dict(values.value_counts().iter_rows()))
    return {name: counts[name] for name in names}


def _digest(built: NextBuild) -> str:
    """Hash of all rows: those of a trajectory are in its `digest` already."""
    digest = blake2b(digest_size=32)
    trajectories = built.trajectories.drop("source")
    malformed = built.index.malformed.select(*REJECTED).drop("source")
    rejected = sum(entry["rejected"]["digest"] for entry in built.shards.values())
    for number in (
        trajectories.height,
        *(sum_hashes(trajectories, seed) for seed in range(4)),
        (rejected + sum_hashes(malformed)) % 2**64,
    ):
        digest.update(number.to_bytes(8, "big"))
    return digest.hexdigest()


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
