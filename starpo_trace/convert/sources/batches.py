"""What one record of a source held: spans, malformed spans, damage."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.limits import CUT_PREFIX

_CUT_MARK: Final = CUT_PREFIX.strip("[ ").encode()
"""What JSON writes of a mark however it escapes."""


class ForeignFileError(ValueError):
    """A whole file holds no spans of a known form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRecord:
    """A piece of a file that holds no readable spans."""

    path: str
    """The file."""
    offset: int
    """Where it begins in the file, in `unit`s."""
    unit: Literal["byte", "line", "element"]
    """What offsets count: bytes, lines from 1, elements of a JSON array."""
    reason: str
    """What is wrong with it."""

    def describe(self) -> str:
        """Where in its file, and what is wrong, in words."""
        return f"{self.unit} {self.offset:,}: {self.reason}" if self.offset else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """What one record of a file held."""

    rows: tuple[SpanRow, ...] = ()
    """Spans, in the order of the file."""
    malformed: tuple[MalformedSpan, ...] = ()
    """Spans without valid ids or with impossible values."""
    damaged: tuple[DamagedRecord, ...] = ()
    """Records that could not be read."""
    num_bytes: int | None = None
    """Size of the record that holds all their texts, none of them cut by a limit of the recording
    process; None where that is not known."""


def make_batch(spans: Iterable[SpanRow | MalformedSpan], payload: bytes | None = None) -> SpanBatch:
    """Decoded spans, and the bytes that hold all their texts where known -> one batch."""
    rows: list[SpanRow] = []
    malformed: list[MalformedSpan] = []
    for span in spans:
        if type(span) is SpanRow:
            rows.append(span)
        elif isinstance(span, MalformedSpan):
            malformed.append(span)
    return SpanBatch(
        rows=tuple(rows),
        malformed=tuple(malformed),
        num_bytes=None if payload is None or _CUT_MARK in payload else len(payload),
    )


def make_damage(
    path: Path, offset: int, reason: str, unit: Literal["byte", "line", "element"] = "byte"
) -> SpanBatch:
    """What could not be read -> a batch that says so."""
    return SpanBatch(
        damaged=(DamagedRecord(path=str(path), offset=offset, unit=unit, reason=reason),)
    )
