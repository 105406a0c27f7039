"""Deploy, collect, retrain, five times over: does it go on learning, and does it stay whole?

    python bench/learn rounds [--output DIR] [--json FILE] [--only ENV ...] [--seeds 0 1 2]

Each round records fresh tasks with the policy of the round before (the first with the table's), trains
that policy on this traffic alone with `auto` and a checkpoint every few steps, and plays tasks that no
round has seen. What the diagnostics said is printed beside it. A round is a folder and is not done twice.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import conclude
from rich.console import Console
from rich.table import Table

from learn import work
from learn.bygame import do_each, measure
from learn.cells import fit
from learn.conditions import record
from learn.methods import METHODS
from learn.whole import FULL

ROUNDS = 5
EPOCHS = 4
CHECKED = replace(METHODS["auto"], train={"checkpoint_every_steps": 12})
SPREAD_OF_TASKS = 1000
"""Seeds of a run's rounds lie so far from another run's."""


def do_rounds(root: Path, environment: str, seed: int) -> list[dict[str, Any]]:
    """Every round of one run -> success before and after, and what was said on the way."""
    work.make_model(root, environment, seed)
    model = root / "models" / f"{environment}-seed{seed}"
    told = [{"round": 0, "success": measure(model, environment, seed)}]
    for number in range(1, ROUNDS + 1):
        folder = root / "rounds" / f"{environment}-seed{seed}" / f"round{number}"
        told.append(do_round(folder, environment, seed, number, model=model))
        model = folder / "policy"
    return told


def do_round(
    folder: Path, environment: str, seed: int, number: int, *, model: Path
) -> dict[str, Any]:
    """Record with a model, train it on that, play -> what is written down; `folder/policy` is trained."""
    written = folder / "result.json"
    if written.exists():
        return json.loads(written.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fresh = SPREAD_OF_TASKS * (seed + 1) + number
    record(environment, "exact", model=model, folder=folder, log=FULL.log, seed=fresh)
    result, said = fit(
        CHECKED,
        folder,
        base=model,
        dataset=folder / "exact" / "data",
        seed=seed,
        epochs=EPOCHS,
    )
    if result is None:
        raise RuntimeError(f"{folder}: `auto` did not train: {said}")
    shutil.copytree(result, folder / "policy")
    told = {
        "round": number,
        "success": measure(folder / "policy", environment, seed),
        **summarize(folder / "run"),
    }
    shutil.rmtree(folder / "run")
    shutil.rmtree(folder / "exact")
    written.write_text(json.dumps(told) + "\n")
    return told


def summarize(run: Path) -> dict[str, Any]:
    """Run folder -> what its diagnostics show: how far the policy went, and what stopped it."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [each for each in records if "loss" in each]
    scored = [each for each in records if each.get("event") == "held_back"]
    final = json.loads((run / "final.json").read_text())
    return {
        "algorithm": steps[0]["algorithm"],
        "steps": steps[-1]["step"],
        "result_of_step": final["step"],
        "stopped_by": final.get("early_stop"),
        "reward_mean": records[0]["reward_mean"],
        "entropy": [round(steps[0]["entropy"], 4), round(steps[-1]["entropy"], 4)],
        "largest_kl": round(max(each["approx_kl"] for each in steps), 4),
        "good_change": round(scored[-1]["good_change"], 4),
        "bad_change": None
        if scored[-1]["bad_change"] is None
        else round(scored[-1]["bad_change"], 4),
    }


def print_rounds(found: Sequence[Mapping[str, Any]]) -> None:
    """A row for every run."""
    table = Table("environment", "seed", *(f"round {n}" for n in range(ROUNDS + 1)), "stopped by")
    for run in found:
        rounds = run["rounds"]
        stops = ", ".join(f"{r['round']}: {r['stopped_by']}" for r in rounds if r.get("stopped_by"))
        cells = (f"{100 * r['success']:.1f}" for r in rounds)
        table.add_row(run["environment"], str(run["seed"]), *cells, stops or "-")
    Console(width=120).print(table)


def main() -> None:
    """Do it, print, write the JSON."""
    begun_s = time.monotonic()
    done, path = do_each(do_rounds, about=__doc__, games=["frozen_lake", "shop"])
    found = [
        {"environment": environment, "seed": seed, "rounds": rounds}
        for (environment, seed), rounds in done.items()
    ]
    print_rounds(found)
    gains = [run["rounds"][-1]["success"] - run["rounds"][0]["success"] for run in found]
    ends = [
        run["rounds"][-1]["success"] / max(r["success"] for r in run["rounds"]) for run in found
    ]
    targets = [
        {
            "name": "success after the last round less before the first, least of the runs",
            "value": round(min(gains), 3),
            "target": 0.0,
            "met": min(gains) > 0.0,
        },
        {
            "name": "success after the last round over the best round's, least of the runs",
            "value": round(min(ends), 3),
            "target": 0.9,
            "met": min(ends) >= 0.9,
        },
    ]
    conclude(
        "learn rounds",
        targets,
        {"runs": found},
        begun_s=begun_s,
        is_quick=False,
        path=path,
    )
