"""Span rows -> datasets on disk, and what is in them."""

import orjson
import pytest

from starpo_trace.convert.dataset import build_dataset
from starpo_trace.convert.manifest import scan_table
from starpo_trace.convert.writers.otlpjson import encode_attributes
from starpo_trace.schema import TABLES


def encode_row(row):
    """A span row -> OTLP JSON of one span in a scope of its own."""
    span = {
        "traceId": row.trace_id,
        "spanId": row.span_id,
        "parentSpanId": row.parent_id or "",
        "name": row.name,
        "startTimeUnixNano": str(row.start_ns),
        "endTimeUnixNano": str(row.end_ns or 0),
        "attributes": encode_attributes(row.attributes),
        "droppedAttributesCount": row.num_dropped,
        "status": {} if row.error is None else {"code": 2, "message": row.error},
        "links": [{"traceId": trace, "spanId": span} for trace, span in row.links],
        "events": [
            {"name": name, "timeUnixNano": str(time), "attributes": encode_attributes(attributes)}
            for name, time, attributes in row.events
        ],
    }
    scope = {"scope": {"name": row.scope}, "spans": [span]}
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [scope]}]}


class Datasets:
    """Makes datasets in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def build(self, rows, **options):
        """Span rows -> the folder of their dataset."""
        self.count += 1
        source = self.folder / f"rows-{self.count}.jsonl"
        source.write_bytes(b"".join(orjson.dumps(encode_row(row)) + b"\n" for row in rows))
        return self.build_file(source, **options)

    def build_file(self, source, **options):
        """A file of spans -> the folder of its dataset."""
        self.count += 1
        output = self.folder / f"data-{self.count}"
        build_dataset([source], output, **options)
        return output

    @staticmethod
    def read(dataset):
        """Folder of a dataset -> rows of each table, without the paths they are from."""
        tables = {name: scan_table(dataset, name).collect() for name in TABLES}
        return {
            name: (table if name == "rewards" else table.drop("source", strict=False)).to_dicts()
            for name, table in tables.items()
        }


@pytest.fixture
def datasets(tmp_path):
    return Datasets(tmp_path)
