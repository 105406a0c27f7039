"""JSON documents and lines that are not OTLP -> spans, by the first format that knows them.

A format is one module beside this one; adding one means adding it to `DOCUMENT_FORMATS`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from starpo_trace.convert.otlp import DecodeError, MalformedSpan, SpanRow
from starpo_trace.convert.otlplogs import decode_log_groups, holds_logs
from starpo_trace.convert.sources import (
    inspect_logs,
    mini_swe_agent,
    swe_agent,
    swe_bench,
    tau2_bench,
    tau_bench,
)
from starpo_trace.convert.sources.atif import holds_atif, read_atif
from starpo_trace.convert.sources.batches import SpanBatch, make_batch
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.records import BACKEND_DOCUMENTS


class UnreadableDocumentError(DecodeError):
    """A document has a known form, but holds nothing that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFormat:
    """A form of JSON that holds runs or spans."""

    name: str
    """What users call it."""
    matches: Callable[[Any], bool]
    """Whether a parsed value, a whole document or one line, has this form; cheap."""
    read: Callable[[Any, SourceFile], Iterable[SpanRow | MalformedSpan]]
    """Value and the file it stands in -> its spans; raises DecodeError where it holds none."""
    is_array: bool = False
    """Whether files are arrays of such values, to be read one element at a time."""


DOCUMENT_FORMATS: Final[tuple[DocumentFormat, ...]] = (
    DocumentFormat(
        name="tau-bench", matches=tau_bench.is_run, read=tau_bench.read_run, is_array=True
    ),
    DocumentFormat(name="tau2-bench", matches=tau2_bench.holds_runs, read=tau2_bench.read_runs),
    DocumentFormat(name="Inspect log", matches=inspect_logs.is_log, read=inspect_logs.read_log),
    DocumentFormat(name="SWE-agent", matches=swe_agent.is_run, read=swe_agent.read_run),
    DocumentFormat(
        name="mini-swe-agent", matches=mini_swe_agent.is_run, read=mini_swe_agent.read_run
    ),
    DocumentFormat(
        name="SWE-bench instance report",
        matches=swe_bench.is_instance_report,
        read=swe_bench.read_instance_report,
    ),
    DocumentFormat(
        name="SWE-bench run report",
        matches=swe_bench.is_run_report,
        read=swe_bench.read_run_report,
    ),
    DocumentFormat(
        name="ATIF",
        matches=holds_atif,
        read=lambda value, file: read_atif(value, file.source),
    ),
    DocumentFormat(
        name="OTLP logs",
        matches=holds_logs,
        read=lambda value, file: decode_log_groups(value, file.source),
    ),
    *(
        DocumentFormat(name=name, matches=is_it, read=read)
        for name, is_it, read in BACKEND_DOCUMENTS
    ),
)


def read_document(value: Any, file: SourceFile) -> SpanBatch | None:
    """Parsed value -> its spans; None when no format knows it.

    Raises:
        UnreadableDocumentError: it has a known form, but cannot be read.
    """
    for form in DOCUMENT_FORMATS:
        if form.matches(value):
            try:
                return make_batch(form.read(value, file))
            except DecodeError as error:
                raise UnreadableDocumentError(f"{form.name}: {error}") from error
    return None
