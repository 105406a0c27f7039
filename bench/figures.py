"""Figures and targets -> what is printed, a JSON file, and the exit status."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def name_machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "platform": platform.platform()}


def print_targets(targets: Sequence[Mapping[str, Any]], *, indent: str = "") -> None:
    for each in targets:
        mark = "met" if each["met"] else "NOT MET"
        line = f"{indent}{each['name']}: {each['value']} (target {each['target']}) {mark}"
        print(line, flush=True)


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write it where `--json` says, if it was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


def exit_by_targets(targets: Sequence[Mapping[str, Any]]) -> None:
    """End the process: 0 when every target is met."""
    sys.exit(0 if all(each["met"] for each in targets) else 1)


def conclude(
    bench: str,
    targets: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    begun_s: float,
    is_quick: bool,
    path: Path | None,
) -> None:
    """What a bench ends with; `begun_s`: of `time.monotonic()`; `facts`: all else of its JSON."""
    print_targets(targets)
    result = {
        "bench": bench,
        "machine": name_machine(),
        "is_quick": is_quick,
        "took_s": round(time.monotonic() - begun_s),
        **facts,
        "targets": targets,
    }
    write_json(path, result)
    exit_by_targets(targets)
