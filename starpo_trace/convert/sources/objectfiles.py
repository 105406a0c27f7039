"""URL of an object store -> the objects that hold spans, as the same files in a folder would.

Folders are what stands between the slashes of keys; as on a disk, nothing between two slashes is no
folder. Objects whose keys end with a slash only stand for folders.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from json import JSONDecodeError, loads
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final
from unicodedata import normalize

from starpo_trace.convert.sources.delta import LOG, list_table_names
from starpo_trace.convert.sources.filenames import (
    SPAN_FILE_SUFFIXES,
    is_part_folder,
    is_run_file,
    is_sealed_meanwhile,
    is_span_file,
)
from starpo_trace.convert.sources.objectstores import (
    StoredObject,
    fetch_object,
    list_objects,
    open_store,
    split_url,
)
from starpo_trace.errors import SourceError

_LAST_CHECKPOINT: Final = "_last_checkpoint"
_VERSION_DIGITS: Final = 20
_LOG_FILE: Final = re.compile(r"(\d{20}|_sidecars/)[\w.-]*\.(json|parquet)")
_ODD: Final = ".odd"
"""Beside the buckets' folders; no bucket has such a name."""
_MAX_NAME_BYTES: Final = 200


def find_span_objects(url: str) -> list[StoredObject]:
    """URL of an object, of a Delta table or of what is below a prefix -> objects that hold spans.

    Raises:
        SourceError: they cannot be listed, or there are none.
    """
    bucket, key = split_url(url)
    with open_store(url) as client:
        alone: list[StoredObject] = []
        if key and not key.endswith("/"):
            alone = [each for each in list_objects(client, bucket, key, most=1) if each.key == key]
            if any(each.num_bytes for each in alone):  # an empty one may stand for a folder
                return alone
            key += "/"
        if any(list_objects(client, bucket, f"{key}{LOG}/", most=1)):
            return _list_table_objects(client, bucket, key, url)
        found = _choose_objects(list_objects(client, bucket, key), key) or alone
    if not found:
        raise SourceError(
            f"{url}: no span files below this prefix (looked for "
            f"{', '.join(sorted(SPAN_FILE_SUFFIXES))}); check the bucket and the prefix, of which "
            "only objects and folders like year=2026 directly below are read"
        )
    return found


def _choose_objects(objects: Iterable[StoredObject], prefix: str) -> list[StoredObject]:
    """Objects below a prefix -> those that a folder's files would be read of, in their order."""
    direct: dict[tuple[str, ...], StoredObject] = {}
    nested: dict[tuple[str, ...], StoredObject] = {}
    for each in objects:
        below = each.key[len(prefix) :]
        *folders, name = below.split("/")
        folders = [folder for folder in folders if folder]
        place = (*folders, name, below)
        if all(map(is_part_folder, folders)) and is_span_file(name):
            direct[place] = each
        elif is_run_file(name):
            nested[place] = each
    names: dict[tuple[str, ...], set[str]] = {}
    for *folders, name, _ in direct:
        names.setdefault(tuple(folders), set()).add(name)
    return [
        *(
            direct[place]
            for place in sorted(direct)
            if not is_sealed_meanwhile(place[-2], names[place[:-2]])
        ),
        *(nested[place] for place in sorted(nested)),
    ]


def _list_table_objects(client: Any, bucket: str, prefix: str, url: str) -> list[StoredObject]:
    """Delta table -> objects of its newest version, by its log from the last checkpoint on."""
    objects = {each.key: each for each in list_objects(client, bucket, prefix)}
    log = f"{prefix}{LOG}/"
    with TemporaryDirectory(prefix="starpo-") as place:
        folder = Path(place)
        first = ""
        if last := objects.get(log + _LAST_CHECKPOINT):
            fetch_object(client, last, folder / LOG / _LAST_CHECKPOINT)
            first = _read_first_version(folder / LOG / _LAST_CHECKPOINT, url)
        for key, each in objects.items():
            name = key.removeprefix(log)
            if key.startswith(log) and _LOG_FILE.fullmatch(name) and name >= first:
                fetch_object(client, each, folder / LOG / name)
        keys = [prefix + name for name in list_table_names(folder, url)]
    if missing := [key for key in keys if key not in objects]:
        raise SourceError(
            f"{url}: a Delta table without its file s3://{bucket}/{missing[0]}; was it vacuumed "
            "meanwhile? run it again"
        )
    return [objects[key] for key in keys]


def _read_first_version(file: Path, url: str) -> str:
    """File that names the last checkpoint -> how the names of its version begin."""
    try:
        return str(int(loads(file.read_bytes())["version"])).zfill(_VERSION_DIGITS)
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise SourceError(
            f"{url}: {LOG}/{_LAST_CHECKPOINT} cannot be read; remove it, it will be written again"
        ) from None


def place_copies(objects: Sequence[StoredObject], folder: Path) -> Mapping[str, Path]:
    """Objects, each once -> a path in a folder for the copy of each, by URL.

    Copies lie as their keys say, because names of folders tell names of runs. One whose key is no
    path, or on some file system not the only one with its path, lies in a folder of its own.
    """
    places = [_fold(each) for each in objects]
    num_with = Counter(places)
    folders = {str(parent) for place in num_with for parent in PurePosixPath(place).parents}
    return {
        each.url: _place_copy(each, folder, is_alone=num_with[place] == 1 and place not in folders)
        for each, place in zip(objects, places, strict=True)
    }


def _place_copy(stored: StoredObject, folder: Path, *, is_alone: bool) -> Path:
    names = _split_key(stored)
    plain = [name if _is_file_name(name) else _make_file_name(name) for name in names]
    if plain != names or not is_alone:
        folder = folder / _ODD / blake2b(stored.url.encode(), digest_size=16).hexdigest()
    return folder.joinpath(stored.bucket, *plain)


def _split_key(stored: StoredObject) -> list[str]:
    return [name for name in stored.key.split("/") if name]


def _is_file_name(name: str) -> bool:
    is_plain = name not in {".", ".."} and name.isprintable() and "\\" not in name
    return is_plain and len(name.encode()) <= _MAX_NAME_BYTES


def _make_file_name(name: str) -> str:
    """Any text -> the name of a file, which ends like it."""
    plain = "".join(each if each.isprintable() and each != "\\" else "_" for each in name)
    return f"_{plain.encode()[-_MAX_NAME_BYTES:].decode(errors='ignore')}"


def _fold(stored: StoredObject) -> str:
    """Keys that some file system takes for the same file -> the same text."""
    return normalize("NFC", "/".join([stored.bucket, *_split_key(stored)])).casefold()
