"""Is what was learned more than a lower temperature? The same policies, sampled colder.

    python bench/learn temperature [--output DIR] [--json FILE] [--only ENV ...] [--seeds 0 1 2]

Training makes a policy surer of what it does, and so does a lower temperature, for nothing. The recorded
policy, filtered BC and `auto` (trained on `exact` as in the table) play the same unseen tasks at each temperature. A
game and seed is a folder and is not done twice.
"""

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import conclude
from rich.console import Console
from rich.table import Table

from learn import work
from learn.bygame import do_each, measure
from learn.cells import BEHAVIOUR, fit
from learn.envs import GAMES
from learn.methods import METHODS
from learn.whole import FULL

TEMPERATURES = (1.0, 0.7, 0.5, 0.3)
POLICIES = (BEHAVIOUR, "filtered_bc", "auto")

Found = Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]
"""Game -> policy -> seed -> success at each temperature."""


def try_temperatures(root: Path, environment: str, seed: int) -> dict[str, list[float]]:
    """Policy -> success on unseen tasks at each temperature."""
    folder = root / "temperature" / f"{environment}-seed{seed}"
    written = folder / "result.json"
    if written.exists():
        return json.loads(written.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    work.make_model(root, environment, seed)
    work.make_log(root, environment, seed, "exact", FULL.log)
    place = f"{environment}-seed{seed}"
    base, dataset = root / "models" / place, root / "logs" / place / "exact" / "data"
    found = {}
    for policy in POLICIES:
        model: Path | None = base
        if policy != BEHAVIOUR:
            trained = folder / policy
            trained.mkdir(parents=True)
            model, told = fit(
                METHODS[policy], trained, base=base, dataset=dataset, seed=seed, epochs=FULL.epochs
            )
            if model is None:
                raise RuntimeError(f"{trained}: {policy} did not train: {told}")
        found[policy] = [
            measure(model, environment, seed, temperature=each) for each in TEMPERATURES
        ]
        shutil.rmtree(folder / policy, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(found) + "\n")
    return found


def average(found: Found) -> dict[str, dict[str, list[float]]]:
    """Game -> policy -> success at each temperature, the mean over seeds."""
    return {
        environment: {
            policy: [statistics.fmean(values) for values in zip(*by_seed.values(), strict=True)]
            for policy, by_seed in policies.items()
        }
        for environment, policies in found.items()
    }


def list_targets(means: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Each policy at its own best temperature: in how many games is `auto` ahead?"""
    targets = []
    for other, name in ((BEHAVIOUR, "the recorded policy"), ("filtered_bc", "filtered BC")):
        ahead = sum(max(policies["auto"]) >= max(policies[other]) for policies in means.values())
        targets.append(
            {
                "name": f"games in which `auto` is as good as {name}, each at its best temperature",
                "value": ahead,
                "target": len(means),
                "met": ahead == len(means),
            }
        )
    return targets


def print_means(means: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A row for each game and policy, in per cent."""
    table = Table("game", "policy", *(f"at {each:g}" for each in TEMPERATURES))
    for environment, policies in means.items():
        for policy, values in policies.items():
            table.add_row(environment, policy, *(f"{100 * value:.1f}" for value in values))
    Console(width=100).print(table)


def main() -> None:
    """Do it, print, write the JSON."""
    begun_s = time.monotonic()
    done, path = do_each(try_temperatures, about=__doc__, games=list(GAMES))
    found = {
        environment: {
            policy: {
                seed: told[policy] for (game, seed), told in done.items() if game == environment
            }
            for policy in POLICIES
        }
        for environment in dict.fromkeys(game for game, _ in done)
    }
    means = average(found)
    print_means(means)
    conclude(
        "learn temperature",
        list_targets(means),
        {"temperatures": TEMPERATURES, "success": found},
        begun_s=begun_s,
        is_quick=False,
        path=path,
    )
