"""A step that can be run -> its peak memory; rounds of figures -> medians."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def spread_ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratios of figures that were taken in the same round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def measure_peak_mib(run: Callable[[], object]) -> float:
    """MiB that a call needs beyond what this process holds before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _read_status("VmRSS")
    run()
    return (_read_status("VmHWM") - before) / 1024


def judge(name: str, value: float, bound: float, *, at_least: bool) -> dict[str, object]:
    met = value >= bound if at_least else value <= bound
    return {"name": name, "value": value, "target": bound, "met": met}


def print_targets(targets: Sequence[dict[str, object]]) -> None:
    for each in targets:
        verdict = "met   " if each["met"] else "MISSED"
        print(f"{verdict} {each['name']}: {each['value']:.3g} ({each['target']:.3g})")


def _read_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
