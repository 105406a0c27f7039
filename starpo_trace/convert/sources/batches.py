"""What one record of a source held: spans, malformed spans, damage."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from starpo_trace.convert.otlp import MalformedSpan, SpanRow


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRecord:
    """A piece of a file that holds no readable spans."""

    path: str
    """The file."""
    offset: int
    """Byte offset in the file (line number for JSON lines)."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """What one record of a file held."""

    rows: tuple[SpanRow, ...] = ()
    """Spans, in the order of the file."""
    malformed: tuple[MalformedSpan, ...] = ()
    """Spans without valid ids or with impossible values."""
    damaged: tuple[DamagedRecord, ...] = ()
    """Records that could not be read."""


def make_batch(spans: Iterable[SpanRow | MalformedSpan]) -> SpanBatch:
    """Decoded spans -> one batch."""
    rows: list[SpanRow] = []
    malformed: list[MalformedSpan] = []
    for span in spans:
        if isinstance(span, SpanRow):
            rows.append(span)
        else:
            malformed.append(span)
    return SpanBatch(rows=tuple(rows), malformed=tuple(malformed))


def make_damage(path: Path, offset: int, reason: str) -> SpanBatch:
    """What could not be read -> a batch that says so."""
    return SpanBatch(damaged=(DamagedRecord(path=str(path), offset=offset, reason=reason),))
