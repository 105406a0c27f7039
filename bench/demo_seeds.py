"""The demo on several seeds: does offline training beat the recorded policy on unseen tasks?

    python bench/demo_seeds.py [--quick] [--json FILE] [--seeds 0 1 2] [--model tiny]

Each seed has its own warm-up, training tasks and test tasks. Differences are paired by task and
clustered; the last column asks the gate. `--quick` runs one seed.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import t as student_t

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "frozen_lake" / "demo.py"
POLICIES = ("behaviour", "filtered_bc", "starpo")


def run_seed(model: str, seed: int) -> dict:
    """Run (or finish, or just read) the demo for one seed and return its figures."""
    subprocess.run(
        [sys.executable, DEMO, "--model", model, "--seed", str(seed)], check=True, cwd=ROOT
    )
    return json.loads((ROOT / "demo-output" / f"{model}-seed{seed}" / "demo.json").read_text())


def summarize(values: list[float]) -> dict[str, object]:
    """Mean over seeds and its 95% t interval (absent for one seed)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def main() -> None:
    """Run the seeds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.quick else args.seeds
    results = [run_seed(args.model, seed) for seed in seeds]

    rows = []
    for result in results:
        row = {"seed": result["seed"], "verdict": result["verdict"]["verdict"]}
        row |= {name: result["policies"][name]["success_mean"] for name in POLICIES}
        row |= {f"{name}_ci95": result["policies"][name]["success_ci95"] for name in POLICIES}
        row["minutes"] = round(result["total_seconds"] / 60, 1)
        rows.append(row)
    gains = {
        name: [row[name] - row["behaviour"] for row in rows] for name in ("filtered_bc", "starpo")
    }
    over_bc = [row["starpo"] - row["filtered_bc"] for row in rows]
    figures = {
        "machine": f"{platform.machine()}, 2 CPU cores",
        "model": args.model,
        "seeds": rows,
        "gain_over_behaviour": {name: summarize(values) for name, values in gains.items()},
        "starpo_over_filtered_bc": summarize(over_bc),
    }
    slowest = max(row["minutes"] for row in rows)
    worst = min(gains["starpo"])
    targets = [
        {
            "name": "slowest demo, minutes",
            "value": slowest,
            "target": 12,
            "met": slowest <= 12,
        },
        {
            "name": "smallest StarPO gain over the recorded policy on any seed",
            "value": worst,
            "target": 0.0,
            "met": worst > 0,
        },
    ]
    print("seed  behaviour  filtered BC  StarPO   gate          minutes")
    for row in rows:
        print(
            f"{row['seed']:>4}  {row['behaviour']:>9.1%}  {row['filtered_bc']:>11.1%}  "
            f"{row['starpo']:>6.1%}   {row['verdict']:<12}  {row['minutes']:>6}"
        )
    print(json.dumps({key: figures[key] for key in list(figures)[3:]}, indent=2))
    if args.json:
        args.json.write_text(json.dumps({"figures": figures, "targets": targets}, indent=2) + "\n")


if __name__ == "__main__":
    main()
