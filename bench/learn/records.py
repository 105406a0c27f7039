"""Cells' folders -> records: what is kept of a cell, one line of JSON each.

A file of them says what has been done, here or on another machine; a cell that is in it with the same
settings is not done again.

    environment, data, method, seed, settings    which cell
    test, shifted                                share of successes, or else
    refused, failed                              why there are none
    algorithm, steps, events, train_cpu_s, cpu_s, rows, ope    what was said on the way
    judged                                       of each split: the truth and the gate's verdict
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from learn.cells import BEHAVIOUR, RESULT_FILE, Cell
from learn.decide import judge

Record = dict[str, Any]


def find_key(record: Record) -> tuple[str, str, str, int]:
    """What names the cell: environment, data, method, seed."""
    return record["environment"], record["data"], record["method"], record["seed"]


def make_record(root: Path, cell: Cell) -> Record:
    """A cell that is done, and its environment's recorded policy -> its record."""
    record = {
        "environment": cell.environment,
        "data": cell.data,
        "method": cell.method,
        "seed": cell.seed,
    }
    record |= json.loads((root / cell.place / RESULT_FILE).read_text())
    if cell.method != BEHAVIOUR and "test" in record:
        record["judged"] = judge(root, cell)
    return record


def read_records(path: Path) -> list[Record]:
    """Nothing where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Sorted; the later one of two of the same cell is kept."""
    kept = {find_key(record): record for record in records}
    lines = [json.dumps(kept[key]) for key in sorted(kept)]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.replace(path)
