"""Sources (folders, files, buckets) -> batches of span rows."""

from starpo_trace.convert.sources.batches import DamagedRecord, SpanBatch
from starpo_trace.convert.sources.files import (
    SourceFile,
    SourceFingerprint,
    find_source_files,
    fingerprint_file,
)
from starpo_trace.convert.sources.formats import read_span_batches
from starpo_trace.convert.sources.spool import hold_copies, identify_file, name_object, note_runs

__all__ = [
    "DamagedRecord",
    "SourceFile",
    "SourceFingerprint",
    "SpanBatch",
    "find_source_files",
    "fingerprint_file",
    "hold_copies",
    "identify_file",
    "name_object",
    "note_runs",
    "read_span_batches",
]
