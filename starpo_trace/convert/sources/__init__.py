"""Sources (folders, files) -> batches of span rows."""

from starpo_trace.convert.sources.batches import DamagedRecord, SpanBatch
from starpo_trace.convert.sources.files import (
    SourceFile,
    SourceFingerprint,
    find_source_files,
    fingerprint_file,
)
from starpo_trace.convert.sources.formats import read_span_batches

__all__ = [
    "DamagedRecord",
    "SourceFile",
    "SourceFingerprint",
    "SpanBatch",
    "find_source_files",
    "fingerprint_file",
    "read_span_batches",
]
