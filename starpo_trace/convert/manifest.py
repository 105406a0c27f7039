"""What a build made -> `manifest.json`, which makes the tables one version; and back.

Each table is a Delta table, every build a new version of it. The manifest names the versions that
belong together and is replaced last, so that whoever reads through it sees the last whole build,
also while another is being written or after one was killed.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starpo_trace.errors import DatasetError
from starpo_trace.schema import DATASET_SCHEMA_VERSION, MANIFEST_FILE, TABLES, VERSIONS_FOLDER

if TYPE_CHECKING:
    import polars as pl

    from starpo_trace.convert.forgotten import Forgotten

_LOCK_FILE: Final = ".build.lock"
_TEMPORARY_MANIFEST: Final = ".manifest.json.tmp"
_MISREAD_BY_DELTA: Final = re.compile(r"\\|%[0-9A-Fa-f]{2}")
INDEX_FOLDER: Final = "index"
"""What a build remembers for the next one."""
BUILD_FOLDER: Final = ".build"
_OBJECT_STORE: Final = re.compile(r"[a-z][a-z0-9]+:/")
"""How a path begins that was made of a URL."""
"""Where a build works; what is left of a killed one is removed by the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Where every span that was read went: read = used + rejected + duplicates."""

    spans_read: int
    """Spans found in the sources."""
    spans_used: int
    """Spans that made rows of the dataset."""
    spans_rejected_by_reason: dict[str, int]
    """Spans that did not, by reason; each is a row of the table `rejected`."""
    duplicates: int
    """Further copies of a span that was already read."""
    damaged_records: int
    """Pieces of the sources that hold no readable spans (how many spans is not known)."""
    damage: list[str] = field(default_factory=list)
    """What is wrong with the first of them in each file: the file, the line or byte, the reason."""

    @property
    def is_closed(self) -> bool:
        """Whether every span read is accounted for."""
        num_rejected = sum(self.spans_rejected_by_reason.values())
        return self.spans_read == self.spans_used + num_rejected + self.duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says about a dataset."""

    starpo_version: str
    """Version of the package that built it."""
    created: str
    """Time of the build, ISO 8601, UTC."""
    parameters: dict[str, Any]
    """Arguments of the build."""
    sources: list[dict[str, Any]]
    """Of each file read: `path`, `source` (what the caller named), `bytes`, `sha256`, `changed_ns`
    (Unix time), `spans`, `malformed` (spans that could not be read), `damaged` (records), `damage` (the reasons
    of the first of these, with the line or byte where they begin), of an object also its `etag`."""
    counts: dict[str, int]
    """Rows per table."""
    accounting: Accounting
    """Where every span went."""
    usable_for: dict[str, int]
    """Trajectories per verdict: rl, sft, none."""
    signatures: dict[str, int]
    """Rewards per state of their signature: valid, invalid, missing, unchecked."""
    digest: str
    """Hash of all rows, whatever their order, files and sources; of one version of Polars."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per table: `path`, Delta `version`, and `files` (path in the table -> BLAKE2b-128 hex)."""
    curation: dict[str, Any] = field(default_factory=dict)
    """How trajectories were grouped, split and left out: kept + left out by first reason = all."""
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per shard: `files` (name by table) and what is known of its rows of `rejected`."""
    index: dict[str, str] = field(default_factory=dict)
    """Files by which the next build finds what it need not build again."""
    forgotten: dict[str, Any] = field(default_factory=dict)
    """`salt`, and salted hashes `ids` of who was deleted and stays so in later builds."""
    schema_version: str = DATASET_SCHEMA_VERSION
    """Version of tables and columns."""


def read_manifest(path: Path) -> Manifest:
    """Dataset folder -> its manifest.

    Raises:
        DatasetError: the folder is no dataset, or one of another schema version.
    """
    file = path / MANIFEST_FILE
    try:
        fields = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: no {MANIFEST_FILE}, so this is no dataset; build one with "
            f"`starpo-trace export SOURCE -o {path}`"
        ) from None
    except NotADirectoryError:
        raise DatasetError(
            f"{path}: is a file and no dataset; build one with `starpo-trace export {path} -o DATASET`"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read: {error}") from error
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != DATASET_SCHEMA_VERSION:
        found = "no schema version" if version is None else f"schema version {version}"
        raise DatasetError(
            f"{file}: {found}, this starpo reads {DATASET_SCHEMA_VERSION}; export the sources again"
        )
    _check_fields(file, fields, Manifest, "")
    _check_fields(file, fields["accounting"], Accounting, "accounting.")
    return Manifest(**{**fields, "accounting": Accounting(**fields["accounting"])})


def read_forgotten(path: Path) -> "Forgotten":
    """Dataset folder -> who was deleted from it, also where another version of starpo wrote it.

    Raises:
        DatasetError: the manifest is there and cannot be read.
    """
    from starpo_trace.convert.forgotten import Forgotten

    file = path / MANIFEST_FILE
    try:
        fields = json.loads(file.read_bytes())
        entry = fields.get("forgotten") or {"salt": "", "ids": ()}
        return Forgotten(salt=entry["salt"], ids=frozenset(entry["ids"]))
    except FileNotFoundError:
        return Forgotten()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{file}: cannot be read, so who was forgotten is not known ({_one_line(error)}); "
            f"restore it from {VERSIONS_FOLDER}/, or export to a new folder"
        ) from error


def _check_fields(file: Path, values: Any, record: type, prefix: str) -> None:
    known = {each.name for each in dataclass_fields(record)}
    needed = {each.name for each in dataclass_fields(record) if each.default_factory is MISSING}
    given = set(values) if isinstance(values, dict) else set()
    for what, names in (("lacks", needed - given), ("has the unknown", given - known)):
        if names:
            listed = ", ".join(f"{prefix}{name}" for name in sorted(names))
            raise DatasetError(f"{file}: {what} {listed}; export the sources again")


def scan_table(path: Path, name: str) -> "pl.LazyFrame":
    """Dataset folder and table name -> lazy frame, pinned at the manifest's version.

    Raises:
        DatasetError: the table's files are not those that the manifest names.
    """
    import polars as pl

    tables = read_manifest(path).tables
    try:
        folder, version = path / tables[name]["path"], int(tables[name]["version"])
        files = tables[name].get("files")  # absent in the first datasets
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DatasetError(
            f"{path / MANIFEST_FILE}: says no path and version of table {name}; export again"
        ) from None
    try:
        found = _hash_files(folder, version)
        # Not scan_delta, which finds no file in a folder whose name has a space.
        paths = [folder / name for name in found]
        frame = (
            pl.scan_parquet(paths, glob=False)
            if paths
            else pl.scan_delta(str(folder), version=version)
        )
        problem = "its files have changed" if files not in (None, found) else None
    except Exception as error:  # noqa: BLE001 (deltalake and polars share no error class)
        frame, problem = None, _one_line(error)
    if frame is None or problem is not None:
        raise DatasetError(
            f"{folder}: version {version} does not match {MANIFEST_FILE}; export again with --full ({problem})"
        )
    return frame


def check_output(path: Path) -> None:
    """Refuse an output that holds something else than a dataset (or a killed build of one).

    Raises:
        DatasetError: `path` is a file, a folder with other content, in an object store, or nowhere
            that Delta finds.
    """
    if _OBJECT_STORE.match(str(path)):
        raise DatasetError(
            f"{path}: datasets are built in a local folder; give one, and copy it then "
            "(aws s3 sync DATASET s3://...)"
        )
    if found := _MISREAD_BY_DELTA.search(str(path.resolve())):
        raise DatasetError(
            f"{path}: its path has {found[0]!r}, which Delta tables read as another character; "
            "choose another folder"
        )
    if not path.exists():
        return
    if not path.is_dir():
        raise DatasetError(f"{path}: is a file; give a new folder or an existing dataset")
    ours = {
        *TABLES,
        MANIFEST_FILE,
        _LOCK_FILE,
        _TEMPORARY_MANIFEST,
        BUILD_FOLDER,
        INDEX_FOLDER,
        VERSIONS_FOLDER,
    }
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    if others and (path / MANIFEST_FILE).is_file():
        raise DatasetError(
            f"{path}: a dataset that holds {', '.join(others[:3])} beside its own files; move that "
            "elsewhere, a new version would not know what to do with it"
        )
    if others:
        raise DatasetError(
            f"{path}: exists and is not a dataset (it holds {', '.join(others[:3])}); "
            "give a new folder or an existing dataset"
        )


@contextmanager
def undo_unfinished(path: Path) -> Iterator[None]:
    """Around a build: when it fails, leave the last dataset, or nothing at all.

    Raises:
        DatasetError: the disk is full, or refused a write.
    """
    had_dataset = (path / MANIFEST_FILE).is_file()
    shutil.rmtree(path / BUILD_FOLDER, ignore_errors=True)  # of a build that was killed
    try:
        yield
        shutil.rmtree(path / BUILD_FOLDER, ignore_errors=True)
    except Exception as error:
        _remove_unfinished(path, had_dataset=had_dataset)
        # deltalake names the cause of a full disk only in its text, under several error classes.
        is_full = "os error 28" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        if not (is_full or isinstance(error, OSError) or _is_delta_error(error)):
            raise
        fate = "the last dataset is intact" if had_dataset else "no dataset was there before"
        what = "disk full" if is_full else f"cannot be written ({_one_line(error)})"
        remedy = "free space and repeat" if is_full else "repeat, or choose another folder"
        raise DatasetError(
            f"{path}: {what}; nothing of this build counts, {fate}; {remedy}"
        ) from error
    except BaseException:  # interrupted, or a panic in native code
        _remove_unfinished(path, had_dataset=had_dataset)
        raise


def _remove_unfinished(path: Path, *, had_dataset: bool) -> None:
    (path / _TEMPORARY_MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path / BUILD_FOLDER, ignore_errors=True)
    if had_dataset:
        return
    for folder in (*TABLES, INDEX_FOLDER, VERSIONS_FOLDER):
        shutil.rmtree(path / folder, ignore_errors=True)
    (path / _LOCK_FILE).unlink(missing_ok=True)  # last: from here on others may build
    with suppress(OSError):
        path.rmdir()


def _is_delta_error(error: Exception) -> bool:
    from deltalake.exceptions import DeltaError

    return isinstance(error, DeltaError)


@contextmanager
def lock_output(path: Path) -> Iterator[None]:
    """Create the folder and hold it alone; the lock ends with the process, however it ends.

    Raises:
        DatasetError: another build writes there, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK_FILE).open("w")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_removed = os.fstat(lock.fileno()).st_nlink == 0  # by a build that failed meanwhile
        except OSError as error:
            raise DatasetError(f"{path}: another build is writing it; wait for it") from error
        if is_removed:
            raise DatasetError(f"{path}: another build has just failed there; repeat")
        yield


def _hash_files(folder: Path, version: int) -> dict[str, str]:
    """Delta table and version -> BLAKE2b-128 of each of its files, by path in the folder."""
    from deltalake import DeltaTable

    # Our tables have no partitions, so each file lies in the folder; the URI is percent-encoded.
    uris = DeltaTable(str(folder), version=version).file_uris()
    hashes = {}
    for name in sorted(uri.rsplit("/", 1)[-1] for uri in uris):
        with (folder / name).open("rb") as stream:
            hashes[name] = file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()
    return hashes


def _one_line(error: BaseException) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m|↳", " ", str(error))
    return " ".join(plain.split()) or type(error).__name__


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Manifest -> `manifest.json`, replaced in one step once it is on disk, and kept by digest."""
    text = json.dumps(asdict(manifest), indent=2)
    versions = path / VERSIONS_FOLDER
    versions.mkdir(exist_ok=True)
    _replace_file(versions / f"{manifest.digest}.json", text)
    _replace_file(path / MANIFEST_FILE, text)


def _replace_file(file: Path, text: str) -> None:
    temporary = file.with_name(_TEMPORARY_MANIFEST)
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
