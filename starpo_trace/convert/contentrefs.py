"""Messages that were uploaded to files -> the spans that name the files.

OpenTelemetry's upload hook writes messages to files of their own (JSON, or JSON lines) and their
paths to `gen_ai.input.messages_ref` and the like. Whoever writes spans writes these paths, so a
file is read only where it lies in the folder of its source, or in one that the user allowed;
in the latter also by its name alone, for files that were fetched from a bucket.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources.objectstores import is_object_url
from starpo_trace.messages import dump_json

_REFS: Final = {
    f"{key}_ref": key
    for key in (
        semconv.INPUT_MESSAGES,
        semconv.OUTPUT_MESSAGES,
        semconv.TOOL_DEFINITIONS,
        "gen_ai.system_instructions",
    )
}
_DETAILS_EVENT: Final = "gen_ai.client.inference.operation.details"
_INDEX: Final = "index"
"""What the hook adds to each line."""
_SUFFIXES: Final = frozenset({".json", ".jsonl"})
_MAX_BYTES: Final = 16 << 20
_CACHED_FILES: Final = 64

OUTSIDE: Final = "content_ref_outside"
MISSING: Final = "content_ref_missing"
UNREADABLE: Final = "content_ref_unreadable"
REASONS: Final = (MISSING, OUTSIDE, UNREADABLE)
"""Reasons that a run has when its files are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    reason: str


def read_content_refs(rows: Sequence[SpanRow], folders: Sequence[Path] = ()) -> Sequence[SpanRow]:
    """Span rows -> as many, with the content of the files that they name, or the reason why not.

    These very rows where none names a file.

    Args:
        rows: spans.
        folders: folders that the user allows, besides the spans' own sources.
    """
    _read_file.cache_clear()  # files may have changed since the last build
    if not any(_list_refs(row) for row in rows):
        return rows
    allowed = tuple(folder.resolve() for folder in folders)
    return [_read_row(row, allowed) if _list_refs(row) else row for row in rows]


def _list_refs(row: SpanRow) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not _REFS.keys().isdisjoint(row.attributes.keys()):
        found = {name: row.attributes[name] for name in _REFS if name in row.attributes}
    for name, _, attributes in row.events:
        if name == _DETAILS_EVENT:
            found = {key: attributes[key] for key in _REFS if key in attributes} | found
    return found


def _read_row(row: SpanRow, allowed: tuple[Path, ...]) -> SpanRow:
    known = set(row.attributes).union(*(attributes for _, _, attributes in row.events))
    own = _list_own_folders(row.source)
    added: dict[str, Any] = {}
    reasons: list[str] = []
    for name, value in _list_refs(row).items():
        if _REFS[name] in known:
            continue
        found = _read_ref(value, (*own, *allowed), allowed)
        if isinstance(found, _Refused):
            reasons.append(found.reason)
        else:
            added[_REFS[name]] = found
    if reasons:
        noted = row.attributes.get(semconv.USABLE_FOR_REASONS)
        noted = list(noted) if isinstance(noted, (list, tuple)) else []
        added[semconv.USABLE_FOR_REASONS] = [*noted, *sorted(set(reasons))]
    return replace(row, attributes={**row.attributes, **added}) if added else row


def _list_own_folders(source: str) -> tuple[Path, ...]:
    """Source of a span -> its folder; none for a bucket."""
    if is_object_url(source):
        return ()
    path = Path(source)
    return ((path if path.is_dir() else path.parent).resolve(),)


def _read_ref(value: Any, folders: tuple[Path, ...], allowed: tuple[Path, ...]) -> str | _Refused:
    """What a span names -> JSON text of the list that the file holds, in one of the folders."""
    path = _read_path(value)
    by_name = [folder / Path(str(value)).name for folder in allowed]
    candidates = [each for each in (path, *by_name) if each is not None]
    inside = [each for each in candidates if _is_inside(each, folders)]
    if not inside:
        return _Refused(reason=OUTSIDE)
    for each in inside:
        if os.path.isfile(each):  # noqa: PTH113 (a name that is too long is an error of Path's)
            return _read_file(str(each))
    return _Refused(reason=MISSING)


def _read_path(value: Any) -> Path | None:
    """Path or `file:` URL -> absolute path; None for any other URL."""
    if not isinstance(value, str) or "\0" in value:
        return None
    if "://" in value:
        parts = urlsplit(value)
        if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
            return None
        value = unquote(parts.path)
    path = Path(value)
    return path if path.is_absolute() else None


def _is_inside(path: Path, folders: tuple[Path, ...]) -> bool:
    """Whether a file lies in one of the folders, wherever links lead."""
    if path.suffix not in _SUFFIXES:
        return False
    try:
        found = path.resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    return any(found.is_relative_to(folder) for folder in folders)


@lru_cache(maxsize=_CACHED_FILES)
def _read_file(path: str) -> str | _Refused:
    try:
        text = _read_bytes(path).decode()
        items = _parse(text)
    except (OSError, ValueError, RecursionError):
        return _Refused(reason=UNREADABLE)
    if not all(isinstance(item, dict) for item in items):
        return _Refused(reason=UNREADABLE)
    return dump_json([{k: v for k, v in item.items() if k != _INDEX} for item in items])


def _read_bytes(path: str) -> bytes:
    """A regular file's bytes; never waits for a pipe that stands there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:  # noqa: PTH123 (it is open already)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise ValueError(f"{path} is no file of at most {_MAX_BYTES:,} bytes")
        return stream.read(_MAX_BYTES)


def _parse(text: str) -> list[Any]:
    """A list in one line, or an object a line."""
    try:
        found = read_json(text)
    except ValueError:
        return [read_json(line) for line in text.splitlines() if line.strip()]
    return found if isinstance(found, list) else [found]
