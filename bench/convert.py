"""Spans per CPU second from span files to a dataset, beside others and the floors, in one run.

    python bench/convert.py [--quick] [--json FILE] [--cache DIR] [--work DIR]

The corpus is invented (`bench/convertlib/corpus.py`): runs of 40 spans of about 2.6 kB as JSON and
1.9 kB as protobuf. Every way runs in a process of its own with one thread, several times in turn;
the best of each counts, because what else runs on the machine only ever adds.

- ours: everything included (hashes of the sources, parse, trees, message graph, rewards, verdicts,
  Delta tables, manifest with closed accounting), from JSON and from protobuf;
- agent-lightning 0.3: its adapter from its own JSON of the same spans, to triplets, nothing written;
- a plain converter over orjson: no trees, no graph, no rewards, all in memory;
- floors: parse and flatten alone, with orjson, msgspec's typed structs, and upb.

Also: peak memory at four times the spans; whole histories against new messages only; two processes;
a late reward for 1 % of the runs, against building everything again. Full: 1,000,000 spans and
100,000 runs (4,000,000 spans) for the last ones, some 50 minutes; quick: a fiftieth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from convertlib.corpus import SPANS_PER_RUN, write_agent_lightning, write_corpus, write_late_rewards

BENCH = Path(__file__).parent
NUM_SPANS, NUM_QUICK_SPANS = 1_000_000, 40_000
NUM_PEER_SPANS = 40_000
DEFAULT_CACHE = Path.home() / ".cache" / "starpo-bench"
LATE_SHARE = 0.01


def run_child(way: str, folder: Path, *flags: str) -> dict[str, Any]:
    """What one way took on the files of a folder."""
    return _run([sys.executable, "-m", "convertlib.child", way, str(folder), *flags])


def run_agent_lightning(python: Path, folder: Path) -> dict[str, Any]:
    return _run([str(python), "-m", "convertlib.agentlightning_child", str(folder)])


def _run(command: list[str]) -> dict[str, Any]:
    variables = {
        **os.environ,
        "PYTHONPATH": f"{BENCH}{os.pathsep}{BENCH.parent}",
        "POLARS_MAX_THREADS": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def prepare_agent_lightning(cache: Path) -> Path:
    """Python of an environment with the pinned agent-lightning, made when it is not there."""
    folder = cache / "agentlightning"
    python, marker = folder / "bin" / "python", folder / ".ready"
    requirements = BENCH / "convertlib" / "agentlightning.txt"
    if not marker.exists() or marker.read_text() != requirements.read_text():
        print(f"making the environment {folder} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, "--no-deps", "-r", requirements], check=True)
        marker.write_text(requirements.read_text())
    return python


def measure_rates(work: Path, num_spans: int, python: Path, rounds: int) -> dict[str, Any]:
    """Each way's best of some rounds, taken in turn."""
    folders = {form: work / form for form in ("json", "protobuf")}
    sizes = {}
    for form, folder in folders.items():
        paths = write_corpus(folder, num_spans, form=form)
        sizes[form] = sum(path.stat().st_size for path in paths) / num_spans
    write_agent_lightning(work / "agentlightning", NUM_PEER_SPANS)
    ways = {
        "ours from JSON": lambda: run_child("ours", folders["json"], "--anew"),
        "ours from protobuf": lambda: run_child("ours", folders["protobuf"], "--anew"),
        "agent-lightning 0.3": lambda: run_agent_lightning(python, work / "agentlightning"),
        "plain converter (orjson)": lambda: run_child("plain", folders["json"]),
        "floor: orjson": lambda: run_child("orjson", folders["json"]),
        "floor: msgspec, typed": lambda: run_child("msgspec", folders["json"]),
        "floor: upb": lambda: run_child("upb", folders["protobuf"]),
    }
    found: dict[str, Any] = {}
    for number in range(rounds):
        for name, way in ways.items():
            told = way()
            told["spans_per_cpu_s"] = told["spans"] / told["cpu_s"]
            best = found.get(name)
            if best is None or told["cpu_s"] < best["cpu_s"]:
                found[name] = told
            rate = f"{told['spans_per_cpu_s']:,.0f} spans per CPU second"
            print(f"round {number + 1}: {name}: {rate}", file=sys.stderr, flush=True)
    return {"bytes_per_span": sizes, "ways": found}


def measure_memory(work: Path, num_spans: int) -> dict[str, Any]:
    """Peak memory of a build of `num_spans`, and of four times as many."""
    found = {}
    for times in (1, 4):
        folder = work / f"memory{times}"
        write_corpus(folder, num_spans * times, form="json", files=4 * times)
        told = run_child("ours", folder, "--anew")
        found[f"{told['spans']:,} spans"] = told
    first, second = (told["peak_mib"] for told in found.values())
    return {"builds": found, "ratio": second / first}


def measure_histories(work: Path, num_spans: int) -> dict[str, Any]:
    """Whole histories against new messages only: bytes and CPU seconds."""
    found = {}
    for history in ("delta", "full"):
        folder = work / f"history-{history}"
        paths = write_corpus(folder, num_spans, form="json", history=history)
        told = run_child("ours", folder, "--anew")
        found[history] = {**told, "bytes": sum(path.stat().st_size for path in paths)}
    return {
        **found,
        "bytes_ratio": found["full"]["bytes"] / found["delta"]["bytes"],
        "cpu_ratio": found["full"]["cpu_s"] / found["delta"]["cpu_s"],
    }


def measure_updates(work: Path, num_spans: int) -> dict[str, Any]:
    """A late reward for 1 % of the runs; new runs, 1 % of what is there; nothing new."""
    folder = work / "updates"
    write_corpus(folder, num_spans, form="json", files=16)
    full = run_child("ours", folder, "--anew")
    num_runs = num_spans // SPANS_PER_RUN
    num_late = write_late_rewards(folder / "late.jsonl", num_runs, LATE_SHARE)
    late = run_child("ours", folder)
    write_corpus(folder / "new", int(num_spans * LATE_SHARE), form="json", seed=9, files=1)
    (folder / "new" / "part-000.jsonl").rename(folder / "zz-new.jsonl")
    new = run_child("ours", folder)
    nothing = run_child("ours", folder)
    return {
        "runs": num_runs,
        "late_rewards": num_late,
        "full": full,
        "late": late,
        "new_runs": new,
        "nothing": nothing,
        "late_of_full": late["cpu_s"] / full["cpu_s"],
        "new_of_full": new["cpu_s"] / full["cpu_s"],
        "nothing_of_full": nothing["cpu_s"] / full["cpu_s"],
    }


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures -> targets and whether they are met."""
    rate = {name: told["spans_per_cpu_s"] for name, told in results["rates"]["ways"].items()}
    ours = rate["ours from JSON"]
    rows = [
        ("times agent-lightning's adapter", ours / rate["agent-lightning 0.3"], ">= 5"),
        ("share of msgspec's parse and flatten", ours / rate["floor: msgspec, typed"], ">= 0.45"),
        ("protobuf, share of the JSON rate", rate["ours from protobuf"] / ours, ">= 0.75"),
        ("peak memory at 4 times the spans", results["memory"]["ratio"], "<= 1.15"),
        (
            "delta saves CPU as it saves bytes",
            results["histories"]["cpu_ratio"] / results["histories"]["bytes_ratio"],
            ">= 1",
        ),
    ]
    return [
        {
            "name": name,
            "value": round(value, 3),
            "target": target,
            "met": value >= float(target[3:]) if target[0] == ">" else value <= float(target[3:]),
        }
        for name, value, target in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Spans per CPU second into a dataset.")
    parser.add_argument("--quick", action="store_true", help="40,000 spans instead of 1,000,000")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments' folder")
    parser.add_argument("--work", type=Path, help="where the corpus goes (20 GB when not quick)")
    args = parser.parse_args()
    python = prepare_agent_lightning(args.cache)
    num_spans = NUM_QUICK_SPANS if args.quick else NUM_SPANS
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        results: dict[str, Any] = {"spans": num_spans, "quick": args.quick}
        results["rates"] = measure_rates(work, num_spans, python, 2 if args.quick else 3)
        results["memory"] = measure_memory(work, num_spans)
        results["histories"] = measure_histories(work, min(num_spans, 200_000))
        results["updates"] = measure_updates(work, num_spans * 4)
    results["targets"] = judge(results)
    for target in results["targets"]:
        mark = "met" if target["met"] else "MISSED"
        print(f"{target['name']:40} {target['value']:8} {target['target']:>8} {mark}")
    for name in ("late", "new", "nothing"):
        print(f"update, {name}: {results['updates'][f'{name}_of_full']:.3f} of a full build")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
