"""Names of setups and rows -> instructions, CPU time, memory, bytes and import cost of each."""

import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from peers.counter import list_valgrind_command, read_counts
from peers.environments import Child, build_variables, prepare_environment
from peers.setups import SETUPS

MAIN_ROWS = ("short", "stream", "16k", "200", "logprobs", "async")
AGENT_ROWS = ("agent200",)
ROWS = MAIN_ROWS + AGENT_ROWS
ROWS_OF = {
    "ours-redaction": ("short", "stream", "16k"),
    "ours-trajectory": ROWS,
    "ours-delta": AGENT_ROWS,
}
"""Setups that do not run just the main rows."""

BLOCKS = {
    "short": (3, 9),
    "stream": (1, 4),
    "16k": (1, 3),
    "200": (0, 1),
    "logprobs": (2, 6),
    "async": (3, 9),
    "agent200": (1, 2),
}
"""Row -> calls in the two blocks whose difference counts. Within a process a second pair of blocks
agrees to 0.1 % of a call, so more calls would tell nothing more."""
CLOSE = (
    *("none@ours", "floor", "ours", "ours-trajectory", "ours-redaction", "ours-delta"),
    *("none@contrib", "contrib-events", "contrib-spans"),
)
"""Setups whose figures are small beside the call; they are counted in several memory layouts."""
HEAVY_ROWS = ("16k", "200", "agent200")
NUM_LAYOUTS, NUM_HEAVY_LAYOUTS = 12, 3
NUM_LAYOUTS_QUICK, NUM_HEAVY_LAYOUTS_QUICK = 4, 1
NUM_WARM_UP = 12
CPU_CALLS = {
    "short": 20,
    "async": 20,
    "stream": 10,
    "16k": 5,
    "200": 1,
    "logprobs": 10,
    "agent200": 2,
}
NUM_MEMORY_CALLS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure."""

    cache: Path
    """Folder of the environments."""
    num_jobs: int
    """Processes that count at a time."""
    is_quick: bool
    """Whether to take fewer samples."""


def list_rows(name: str, rows: list[str]) -> list[str]:
    """Rows that a setup runs, of those asked for."""
    own = ROWS if name == "none@ours" else ROWS_OF.get(name, MAIN_ROWS)
    return [row for row in rows if row in own]


def name_base(name: str) -> str:
    """The un-instrumented child in the environment of a setup."""
    return f"none@{SETUPS[name].environment}"


def warm_up(child: Child, row: str) -> None:
    """Run a row until the interpreter has specialised its code."""
    child.run_block(row, 2 if row in HEAVY_ROWS else NUM_WARM_UP, is_warm_up=True)


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


def measure_instructions(names: list[str], rows: list[str], options: Options) -> dict[str, Any]:
    """Instructions added per call: means over memory layouts, and the error of each mean."""
    bases = sorted({name_base(name) for name in names})
    tasks = list_counts([*bases, *names], rows, is_quick=options.is_quick)
    with ThreadPoolExecutor(options.num_jobs) as pool:
        counted = pool.map(lambda task: count_instructions(*task, options.cache), tasks)
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


def measure_cpu(names: list[str], rows: list[str], options: Options) -> dict[str, Any]:
    """CPU microseconds added per call: medians over interleaved blocks."""
    bases = sorted({name_base(name) for name in names})
    children = {name: Child(name, options.cache) for name in [*bases, *names]}
    times: dict[str, dict[str, list[float]]] = {
        name: {row: [] for row in list_rows(name, rows)} for name in children
    }
    for child in children.values():
        for row in times[child.name]:
            warm_up(child, row)
    for _ in range(12 if options.is_quick else 40):
        for row in rows:
            num_calls = CPU_CALLS[row]
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


def measure_memory(names: list[str], options: Options) -> dict[str, float]:
    """MiB of resident memory that 20,000 short calls add."""
    growth = {}
    for name in [*sorted({name_base(name) for name in names}), *names]:
        if "short" not in list_rows(name, ["short"]):
            continue
        child = Child(name, options.cache)
        before = child.run_block("short", 500)["resident_bytes"]
        for _ in range(NUM_MEMORY_CALLS // 500):
            after = child.run_block("short", 500)["resident_bytes"]
        child.close()
        growth[name] = (after - before) / 2**20
        print(f"  memory of {name}", flush=True)
    return growth


def run_once(name: str, what: str, options: Options, prefix: tuple[str, ...] = ()) -> Any:
    """What a child that measures one thing and ends says."""
    python = prepare_environment(SETUPS[name].environment, options.cache)
    command = [*prefix, python, "-m", "peers.once", name, what, *(["callgrind"] if prefix else [])]
    variables = build_variables(SETUPS[name])
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}, {what}: {done.stderr[-3000:]}")
    return json.loads(done.stdout)


def measure_import(names: list[str], options: Options) -> dict[str, dict[str, float]]:
    """Cost of importing and switching on each setup, beyond the SDKs and wrapt, and the first call's."""
    runs = {name: [run_once(name, "import", options)] for name in names}
    for _ in range(5 if options.is_quick else 15):
        for name in names:
            runs[name].append(run_once(name, "import", options))
    costs = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            out_file = Path(folder) / "callgrind"
            run_once(name, "import", options, tuple(list_valgrind_command(out_file)))
            _, instructions, first_call = read_counts(out_file)[:3]
        costs[name] = {
            # The first run may have compiled the modules.
            "cpu_ms": median(run["cpu_ms"] for run in runs[name][1:]),
            "instructions": instructions,
            "modules": runs[name][1]["modules"],
            "first_call_cpu_ms": median(run["first_call_cpu_ms"] for run in runs[name][1:]),
            "first_call_instructions": first_call,
            "first_call_modules": runs[name][1]["first_call_modules"],
        }
    return costs


def measure_bytes(names: list[str], options: Options) -> dict[str, dict[str, int]]:
    """OTLP bytes of the call that sends 20 messages, and of the one that sends 200."""
    sizes = {}
    for name in names:
        calls = run_once(name, "bytes", options)
        by_length = {call["messages"]: call["bytes"] for call in calls}
        sizes[name] = {"20": by_length[20], "200": by_length[200]}
    return sizes
