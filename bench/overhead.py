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
from pathlib import Path
from typing import Any

from peers.environments import DEFAULT_CACHE, prepare_environment, read_pins
from peers.measure import (
    ROWS,
    Options,
    measure_bytes,
    measure_cpu,
    measure_import,
    measure_instructions,
    measure_memory,
)
from peers.setups import SETUPS
from peers.targets import judge_targets

BYTES_SETUPS = ("floor", "ours", "ours-delta")
IMPORT_SETUPS = (
    "none",
    "floor",
    "ours",
    "ours-redaction",
    *(name for name, setup in SETUPS.items() if setup.is_peer),
)


def print_table(title: str, added: dict[str, dict[str, float]], unit: float, digits: int) -> None:
    """A Markdown table with a line per setup."""
    rows = [row for row in ROWS if any(row in values for values in added.values())]
    print(f"\n{title}\n\n| | {' | '.join(rows)} |\n|---|{'---:|' * len(rows)}")
    for name, values in added.items():
        cells = [f"{values[row] / unit:.{digits}f}" if row in values else "" for row in rows]
        print(f"| {SETUPS[name.partition('@')[0]].title} | {' | '.join(cells)} |", flush=True)


def print_results(results: dict[str, Any]) -> None:
    """What is not a table of rows."""
    print("\nImport and switching on, beyond the SDKs and wrapt\n")
    print("| | CPU ms | million instructions | modules | ... of the first call | | |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, cost in results["import"].items():
        cells = [
            f"{cost[f'{when}cpu_ms']:.1f} | {cost[f'{when}instructions'] / 1e6:.1f} "
            f"| {cost[f'{when}modules']}"
            for when in ("", "first_call_")
        ]
        print(f"| {SETUPS[name].title} | {' | '.join(cells)} |")
    print("\nBytes of OTLP a call, in an agent's loop\n")
    print("| | 20 messages | 200 messages |\n|---|---:|---:|")
    for name, sizes in results["bytes"].items():
        print(f"| {SETUPS[name].title} | {sizes['20']} | {sizes['200']} |")
    for name, mib in results.get("memory_growth_mib", {}).items():
        print(f"memory growth after 20,000 short calls, {name}: {mib:.1f} MiB")
    print("\n| target | found | limit | |\n|---|---:|---:|---|")
    for each in results["targets"]:
        verdict = "met" if each["met"] else "MISSED"
        print(f"| {each['name']} | {each['value']} | {each['target']} | {verdict} |")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What instrumentation adds to a model call.")
    parser.add_argument("--quick", action="store_true", help="fewer samples, no memory growth")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--only", help=f"setups, of {','.join(SETUPS)}; leaves import and bytes out"
    )
    parser.add_argument("--rows", help=f"rows, of {','.join(ROWS)}; leaves import and bytes out")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments' folder")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="counts at a time")
    args = parser.parse_args()
    args.is_whole = not args.only and not args.rows
    args.names = args.only.split(",") if args.only else [name for name in SETUPS if name != "none"]
    args.rows = args.rows.split(",") if args.rows else list(ROWS)
    for value, known in [*((name, SETUPS) for name in args.names), *((r, ROWS) for r in args.rows)]:
        if value not in known or value == "none":
            parser.error(f"{value!r}: use names of {', '.join(known)}")
    return args


def main() -> None:
    args = read_arguments()
    names, rows = args.names, args.rows
    options = Options(cache=args.cache, num_jobs=args.jobs, is_quick=args.quick)
    environments = sorted({SETUPS[name].environment for name in names})
    for environment in environments:
        prepare_environment(environment, args.cache)
    instructions = measure_instructions(names, rows, options)
    base = {"none@ours": instructions["base"].get("none@ours", {})}
    title = "Millions of instructions added per call"
    print_table(title, {**base, **instructions["added"]}, 1e6, 3)
    cpu = measure_cpu(names, rows, options)
    print_table("CPU microseconds added per call", cpu["added_us"], 1, 0)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "is_quick": args.quick,
        "versions": {environment: read_pins(environment) for environment in environments},
        "instructions": instructions,
        "cpu": cpu,
        "import": {},
        "bytes": {},
    }
    if args.is_whole:
        results["import"] = measure_import(list(IMPORT_SETUPS), options)
        results["bytes"] = measure_bytes(list(BYTES_SETUPS), options)
        if not args.quick:
            results["memory_growth_mib"] = measure_memory(names, options)
    results["targets"] = judge_targets(results)
    print_results(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
