"""Inspect's logs (`.json`, or `.eval`: a zip with a file for each sample) -> runs."""

import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from starpo_trace.convert.otlp import DecodeError, MalformedSpan, SpanRow
from starpo_trace.convert.sources.batches import (
    ForeignFileError,
    SpanBatch,
    make_batch,
    make_damage,
)
from starpo_trace.convert.sources.compression import list_faults
from starpo_trace.convert.sources.files import SourceFile, open_source
from starpo_trace.convert.sources.inspect_samples import read_sample
from starpo_trace.convert.sources.jsonvalues import parse_json
from starpo_trace.convert.sources.runs import read_each
from starpo_trace.convert.sources.zipmembers import MemberError, read_member
from starpo_trace.errors import SourceError

ZIP_MAGIC: Final = b"PK\x03\x04"

_HEADERS: Final = ("header.json", "_journal/start.json")
"""Where the log's head stands: the second, while the evaluation has not ended."""
_SAMPLES: Final = "samples/"


def is_log(value: Any) -> bool:
    """Whether a document is a log in JSON."""
    if not isinstance(value, dict) or not isinstance(value.get("eval"), dict):
        return False
    return "task" in value["eval"] and "status" in value and "version" in value


def read_log(value: Any, file: SourceFile) -> Iterator[SpanRow | MalformedSpan]:
    """Log in JSON -> spans.

    Raises:
        DecodeError: it has no samples.
    """
    samples = value.get("samples")
    if not isinstance(samples, list):
        raise DecodeError("an Inspect log without samples; run the evaluation with --log-samples")
    return _read_samples(samples, value["eval"], file)


def read_zip_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """Log that is a zip -> a batch for each sample.

    Raises:
        ForeignFileError: it is no log of Inspect's.
        SourceError: it needs a package that is not installed.
    """
    with open_source(file.path) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            yield make_damage(file.path, 0, f"the zip archive is damaged or cut: {error}")
            return
        members = {member.filename: member for member in archive.infolist()}
        if not members.keys() & set(_HEADERS):
            raise ForeignFileError(
                "a zip archive, but no log of Inspect's: it holds no header.json"
            )
        evaluation, damage = _read_head(stream, members, file)
        yield from damage
        if evaluation is None:
            return
        for name, member in members.items():
            if name.startswith(_SAMPLES) and name.endswith(".json"):
                yield _read_member_sample(stream, member, evaluation, file)


def _read_head(
    stream: IO[bytes], members: Mapping[str, zipfile.ZipInfo], file: SourceFile
) -> tuple[Mapping[str, Any] | None, list[SpanBatch]]:
    """The log's field `eval`, from the first head that can be read, and what cannot."""
    damage = []
    for name in _HEADERS:
        if name not in members:
            continue
        try:
            head = _read_json(stream, members[name])
        except MemberError as error:
            damage.append(make_damage(file.path, members[name].header_offset, f"{name}: {error}"))
            continue
        if isinstance(head, dict) and isinstance(head.get("eval"), dict):
            return head["eval"], damage
        damage.append(make_damage(file.path, members[name].header_offset, f"{name}: no `eval`"))
    return None, damage


def _read_member_sample(
    stream: IO[bytes], member: zipfile.ZipInfo, evaluation: Mapping[str, Any], file: SourceFile
) -> SpanBatch:
    try:
        sample = _read_json(stream, member)
    except MemberError as error:
        return make_damage(file.path, member.header_offset, f"{member.filename}: {error}")
    return make_batch(_read_samples([sample], evaluation, file))


def _read_json(stream: IO[bytes], member: zipfile.ZipInfo) -> Any:
    try:
        return parse_json(read_member(stream, member))
    except (MemberError, SourceError):
        raise
    except (*list_faults(), OSError, ValueError, RecursionError) as error:
        raise MemberError(str(error)) from error


def _read_samples(
    samples: list[Any], evaluation: Mapping[str, Any], file: SourceFile
) -> Iterator[SpanRow | MalformedSpan]:
    yield from read_each(
        samples,
        lambda sample: read_sample(sample, evaluation, file.source),
        source=file.source,
        what="sample",
    )
