"""What instrumentation adds to a model call: instructions, CPU time, import, memory, bytes.

    python bench/overhead.py [--quick] [--json FILE] [--only NAMES] [--rows NAMES] [--cache DIR]

`starpo_trace`, other instrumentations of the OpenAI SDK and a floor run the same calls of a real
client over an in-process transport, each in an environment of its own that is made at the first
run (pins in `bench/peers/*.txt`). Instructions are counted by callgrind over all threads: two
blocks of different length, whose difference per call, less that of the un-instrumented client in
the same environment, is what the instrumentation adds. The same code in another memory layout
takes up to 0.3 % more or fewer instructions (CPython's method cache goes by addresses), so what is
small beside the call itself is the mean over several layouts. CPU time is the median over
interleaved blocks; it swings with the machine's load, instructions do not.
"""

import argparse
import json
import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from peers.counter import list_valgrind_command, read_counts
from peers.environments import DEFAULT_CACHE, Child, prepare_environment, read_pins
from peers.setups import SETUPS

MAIN_ROWS = ("short", "stream", "16k", "200", "logprobs", "async")
AGENT_ROWS = ("agent20", "agent200")
ROWS = MAIN_ROWS + AGENT_ROWS
ROWS_OF = {
    "ours-redaction": ("short", "stream", "16k"),
    "ours-trajectory": ROWS,
    "ours-delta": AGENT_ROWS,
}
"""Setups that do not run just the main rows."""

BLOCKS = {
    "short": (4, 12),
    "stream": (2, 6),
    "16k": (2, 6),
    "200": (1, 2),
    "logprobs": (3, 9),
    "async": (4, 12),
    "agent20": (2, 6),
    "agent200": (1, 2),
}
"""Row -> calls in the two blocks whose difference counts. Within a process a second pair of blocks
agrees to 0.1 %, so more calls would tell nothing more."""
CLOSE = ("none@ours", "floor", "ours", "ours-trajectory")
"""Setups whose differences are small; they are counted in several memory layouts."""
HEAVY_ROWS = ("16k", "200", "agent20", "agent200")
NUM_LAYOUTS, NUM_HEAVY_LAYOUTS = 12, 3
NUM_LAYOUTS_QUICK, NUM_HEAVY_LAYOUTS_QUICK = 4, 1
NUM_WARM_UP = 12
NUM_MEMORY_CALLS = 20_000


def list_rows(name: str, rows: list[str]) -> list[str]:
    """Rows that a setup runs, of those asked for."""
    own = ROWS if name == "none@ours" else ROWS_OF.get(name, MAIN_ROWS)
    return [row for row in rows if row in own]


def name_base(name: str) -> str:
    """The un-instrumented child in the environment of a setup."""
    return f"none@{SETUPS[name].environment}"


def warm_up(child: Child, row: str) -> None:
    """Run a row until the interpreter has specialised its code."""
    child.run_block(row, 3 if "200" in row else NUM_WARM_UP, is_warm_up=True)


def count_instructions(name: str, layout: int, rows: list[str], cache: Path) -> dict[str, float]:
    """Instructions per call in each row, in one process."""
    rows = list_rows(name, rows)
    with tempfile.TemporaryDirectory() as folder:
        out_file = Path(folder) / "callgrind"
        prefix = tuple(list_valgrind_command(out_file))
        child = Child(name, cache, prefix=prefix, layout=layout)
        for row in rows:
            warm_up(child, row)
        for row in rows:
            for num_calls in BLOCKS[row]:
                child.run_block(row, num_calls)
        child.close()
        # A count for what lies between the blocks, and one for each block, in turn.
        counts = iter(read_counts(out_file)[1::2])
    per_call = {}
    for row in rows:
        few, many = next(counts), next(counts)
        per_call[row] = (many - few) / (BLOCKS[row][1] - BLOCKS[row][0])
    print(f"  counted {name}, memory layout {layout}", flush=True)
    return per_call


def subtract_base(
    names: list[str], measured: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """What each setup adds to the un-instrumented calls of its environment."""
    return {
        name: {row: value - measured[name_base(name)][row] for row, value in measured[name].items()}
        for name in names
    }


def list_counts(names: list[str], rows: list[str], *, is_quick: bool) -> list[Any]:
    """Setup, memory layout and rows of each process that counts."""
    num_all = NUM_LAYOUTS_QUICK if is_quick else NUM_LAYOUTS
    num_heavy = NUM_HEAVY_LAYOUTS_QUICK if is_quick else NUM_HEAVY_LAYOUTS
    tasks = []
    for name in names:
        for layout in range(num_all if name in CLOSE else 1):
            light = [row for row in rows if layout < num_heavy or row not in HEAVY_ROWS]
            if light:
                tasks.append((name, layout, light))
    return tasks


def measure_instructions(names: list[str], rows: list[str], args: Any) -> dict[str, Any]:
    """Instructions added per call: means over memory layouts, and the error of each mean."""
    bases = sorted({name_base(name) for name in names})
    tasks = list_counts([*bases, *names], rows, is_quick=args.quick)
    with ThreadPoolExecutor(args.jobs) as pool:
        counted = pool.map(lambda task: count_instructions(*task, args.cache), tasks)
    counts: dict[str, dict[str, list[float]]] = {}
    for (name, _, _), per_call in zip(tasks, counted, strict=True):
        for row, value in per_call.items():
            counts.setdefault(name, {}).setdefault(row, []).append(value)
    means = {
        name: {row: mean(values) for row, values in by_row.items()}
        for name, by_row in counts.items()
    }
    errors = {
        name: {
            row: stdev(values) / len(values) ** 0.5
            for row, values in by_row.items()
            if len(values) > 1
        }
        for name, by_row in counts.items()
    }
    return {
        "calls_in_blocks": {row: list(BLOCKS[row]) for row in rows},
        "base": {name: means[name] for name in bases},
        "added": subtract_base(names, means),
        "standard_error": {name: each for name, each in errors.items() if each},
        "counts_by_layout": counts,
    }


def measure_cpu(names: list[str], rows: list[str], args: Any) -> dict[str, Any]:
    """CPU microseconds added per call: medians over interleaved blocks."""
    bases = sorted({name_base(name) for name in names})
    children = {name: Child(name, args.cache) for name in [*bases, *names]}
    times: dict[str, dict[str, list[float]]] = {
        name: {row: [] for row in list_rows(name, rows)} for name in children
    }
    for child in children.values():
        for row in times[child.name]:
            warm_up(child, row)
    for _ in range(5 if args.quick else 15):
        for row in rows:
            num_calls = BLOCKS[row][1]
            for name, child in children.items():
                if row in times[name]:
                    cpu_s = child.run_block(row, num_calls)["cpu_s"]
                    times[name][row].append(1e6 * cpu_s / num_calls)
    for child in children.values():
        child.close()
    medians = {
        name: {row: median(each) for row, each in by_row.items()} for name, by_row in times.items()
    }
    return {
        "base_us": {name: medians[name] for name in bases},
        "added_us": subtract_base(names, medians),
    }


def measure_memory(names: list[str], args: Any) -> dict[str, float]:
    """MiB of resident memory that 20,000 short calls add."""
    growth = {}
    for name in [*sorted({name_base(name) for name in names}), *names]:
        if "short" not in list_rows(name, ["short"]):
            continue
        child = Child(name, args.cache)
        before = child.run_block("short", 500)["resident_bytes"]
        for _ in range(NUM_MEMORY_CALLS // 500):
            after = child.run_block("short", 500)["resident_bytes"]
        child.close()
        growth[name] = (after - before) / 2**20
        print(f"  memory of {name}", flush=True)
    return growth


def print_table(title: str, added: dict[str, dict[str, float]], unit: float, digits: int) -> None:
    """A Markdown table with a line per setup."""
    rows = [row for row in ROWS if any(row in values for values in added.values())]
    print(f"\n{title}\n\n| | {' | '.join(rows)} |\n|---|{'---:|' * len(rows)}")
    for name, values in added.items():
        cells = [f"{values[row] / unit:.{digits}f}" if row in values else "" for row in rows]
        print(f"| {SETUPS[name.partition('@')[0]].title} | {' | '.join(cells)} |")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What instrumentation adds to a model call.")
    parser.add_argument("--quick", action="store_true", help="fewer calls, no memory growth")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", help=f"setups, of {','.join(SETUPS)}")
    parser.add_argument("--rows", help=f"rows, of {','.join(ROWS)}")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments' folder")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="counts at a time")
    args = parser.parse_args()
    args.names = args.only.split(",") if args.only else [name for name in SETUPS if name != "none"]
    args.rows = args.rows.split(",") if args.rows else list(ROWS)
    for value, known in [*((name, SETUPS) for name in args.names), *((r, ROWS) for r in args.rows)]:
        if value not in known or value == "none":
            parser.error(f"{value!r}: use names of {', '.join(known)}")
    return args


def main() -> None:
    args = read_arguments()
    names, rows = args.names, args.rows
    for environment in sorted({SETUPS[name].environment for name in names}):
        prepare_environment(environment, args.cache)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "quick": args.quick,
        "versions": {
            environment: read_pins(environment)
            for environment in sorted({SETUPS[name].environment for name in names})
        },
        "instructions": measure_instructions(names, rows, args),
    }
    instructions = results["instructions"]
    print_table(
        "Millions of instructions added per call",
        {"none@ours": instructions["base"].get("none@ours", {}), **instructions["added"]},
        1e6,
        3,
    )
    results["cpu"] = measure_cpu(names, rows, args)
    print_table("CPU microseconds added per call", results["cpu"]["added_us"], 1, 0)
    if not args.quick:
        results["memory_growth_mib"] = measure_memory(names, args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
