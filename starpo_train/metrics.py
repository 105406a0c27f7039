"""Metrics of a run -> one JSON record per line."""

import json
import math
import os
from pathlib import Path
from typing import Any, Final

STEP: Final = "step"
"""Stands for the event of a step's record, which has none."""
MEASURED: Final = (STEP, "diagnostics", "held_back")
"""Events whose records hold numbers over the steps."""


class MetricsWriter:
    """Appends records to `metrics.jsonl`; every record is on its own, complete line."""

    def __init__(self, path: Path, *, keep_up_to_step: int | None = None) -> None:
        """Open for appending; when resuming, drop what came after the step resumed from."""
        self.path = path
        if keep_up_to_step is not None and path.exists():
            kept = [
                record for record in read_metrics(path) if record.get("step", 0) <= keep_up_to_step
            ]
            fresh = path.with_suffix(".tmp")
            fresh.write_text("".join(_to_line(record) for record in kept), encoding="utf-8")
            fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; numbers that are no numbers become null."""
        self._file.write(_to_line(record))
        self._file.flush()

    def close(self) -> None:
        """Put what was written on disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class SilentWriter:
    """Stands for MetricsWriter on ranks that write nothing."""

    def __init__(self, path: Path, *, keep_up_to_step: int | None = None) -> None:
        """Leave the file alone."""
        del keep_up_to_step
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Rank 0 writes it."""

    def close(self) -> None:
        """Nothing is open."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a metrics file; a line torn by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _to_line(record: dict[str, Any]) -> str:
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(clean, default=str) + "\n"
