"""Runs that are made to collapse: are they stopped before success has fallen by half?

    python bench/learn collapse [--output DIR] [--json FILE] [--seeds 0 1 2]

Each recipe ruins FrozenLake's policy when nothing stops it. It runs twice: with the diagnostics' early
stop, whose last checkpoint plays unseen tasks, and without, where every third step's does. Models and
logs are the table's.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import conclude

from learn import work
from learn.cells import fit
from learn.methods import Method
from learn.play import play
from learn.whole import FULL

ENVIRONMENT = "frozen_lake"
EPOCHS = 6
EVERY_STEPS = 3
TASKS, ATTEMPTS = 100, 2
RECIPES: Mapping[str, tuple[dict[str, Any], float]] = {
    "StarPO at ten times its rate": ({"name": "starpo"}, 2e-3),
    "KTO at twice its rate, a tenth of its beta": ({"name": "kto", "beta": 0.1}, 1e-3),
}
"""Name -> algorithm and learning rate."""


def run_recipe(root: Path, recipe: str, seed: int) -> dict[str, Any]:
    """Train twice, play what was saved -> success by step, where it was stopped, and why."""
    folder = root / "collapse" / f"{list(RECIPES).index(recipe)}-seed{seed}"
    written = folder / "result.json"
    if written.exists():
        return json.loads(written.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    base = root / "models" / f"{ENVIRONMENT}-seed{seed}"
    stopped = fit_recipe(root, folder / "stopped", recipe, seed, early_stop=True)
    going = fit_recipe(root, folder / "going", recipe, seed, early_stop=False)
    success = {0: measure(base, seed)}
    for checkpoint in sorted((going / "checkpoints").iterdir()):
        success[int(checkpoint.name.removeprefix("step_"))] = measure(checkpoint, seed)
    final = json.loads((stopped / "final.json").read_text())
    kls = [
        json.loads(x).get("approx_kl") for x in (going / "metrics.jsonl").read_text().splitlines()
    ]
    result = {
        "recipe": recipe,
        "seed": seed,
        "success": {str(step): value for step, value in sorted(success.items())},
        "kl": [round(kl, 4) for kl in kls if kl is not None],
        "stopped_by": final.get("early_stop"),
        "stopped_at_step": final["step"],
        "success_when_stopped": measure(stopped / final["checkpoint"], seed),
    }
    shutil.rmtree(stopped)
    shutil.rmtree(going)
    written.write_text(json.dumps(result) + "\n")
    return result


def fit_recipe(root: Path, folder: Path, recipe: str, seed: int, *, early_stop: bool) -> Path:
    """One training -> its folder."""
    folder.mkdir(parents=True)
    algorithm, learning_rate = RECIPES[recipe]
    method = Method(
        title=recipe,
        algorithm=algorithm,
        learning_rate=learning_rate,
        train={
            "checkpoint_every_steps": 0 if early_stop else EVERY_STEPS,
            "keep_checkpoints": 0,
            "schedule": "constant",
        },
        diagnostics={"early_stop": early_stop},
    )
    place = f"{ENVIRONMENT}-seed{seed}"
    fit(
        method,
        folder,
        base=root / "models" / place,
        dataset=root / "logs" / place / "exact" / "data",
        seed=seed,
        epochs=EPOCHS,
    )
    return folder / "run"


def measure(model: Path, seed: int) -> float:
    """Success on unseen tasks."""
    runs = play(model, ENVIRONMENT, split="test", tasks=TASKS, attempts=ATTEMPTS, seed=seed)
    return float((runs["reward"] >= 0.5).mean() or 0.0)


def main() -> None:
    """Do it, print, write the JSON."""
    begun_s = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("learn-output"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    root = options.output.resolve()
    found = []
    for seed in options.seeds:
        work.make_model(root, ENVIRONMENT, seed)
        work.make_log(root, ENVIRONMENT, seed, "exact", FULL.log)
        for recipe in RECIPES:
            found.append(run_recipe(root, recipe, seed))
            print(json.dumps(found[-1]), flush=True)
    kept = min(run["success_when_stopped"] / run["success"]["0"] for run in found)
    fallen = max(min(run["success"].values()) / run["success"]["0"] for run in found)
    names = (
        "success when stopped over success at the start, least of the runs",
        "the same where it is least without a stop, largest of the runs",
    )
    targets = [
        {"name": names[0], "value": round(kept, 3), "target": 0.5, "met": kept >= 0.5},
        {"name": names[1], "value": round(fallen, 3), "target": 0.5, "met": fallen < 0.5},
    ]
    conclude(
        "learn collapse",
        targets,
        {"runs": found},
        begun_s=begun_s,
        is_quick=False,
        path=options.json,
    )
