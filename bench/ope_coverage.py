"""Off-policy intervals against values that are known exactly.

    python bench/ope_coverage.py [--quick] [--json FILE] [--repetitions 500]

A contextual bandit and a slippery FrozenLake (gymnasium's dynamics), 100 tasks of 4 attempts each,
recorded under one policy and asked about another, ever further away. Each repetition draws tasks
and runs anew. Counted, over the repetitions that pass the floor of the effective sample size and the
limit on one trajectory's weight: how often each estimator's 95 % interval holds the exact value
(dynamic programming), and how often the verdict is wrong. Where hardly any repetition passes, the
verdict must be inconclusive.

In "lake, far" a few runs hold most of the weight: IS, PDIS, SN-PDIS and DR miss their targets there, which
is why verdicts rest on WIS.

Two columns are no targets but belong beside them: the same for repetitions of which the weights'
mean is also in order (a doubt of its own in the verdict), and for the plain percentile bootstrap.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from figures import conclude
from opelib.worlds import World, make_bandit, make_lake

from starpo_train.ope.bootstrap import draw_clusters, sum_clusters
from starpo_train.ope.evaluation import Evaluation, LoggedTurns, evaluate_logged_turns
from starpo_train.ope.importance import build_wis_terms

NUM_TASKS, ATTEMPTS = 100, 4
THIN = {"ess_below_floor", "weight_concentrated"}
ALL = ("IS", "WIS", "PDIS", "SN-PDIS", "DR", "FQE")
LOW, HIGH = 0.90, 0.99


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A world, and what must hold there."""

    world: World
    is_thin: bool = False
    """Hardly any repetition has the data for an answer."""


@dataclass(kw_only=True)
class Tally:
    """What the repetitions of a setting came to."""

    passed: int = 0
    checked: int = 0
    hits: Counter = field(default_factory=Counter)
    hits_checked: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)
    doubts: Counter = field(default_factory=Counter)
    wrong: int = 0
    thin_but_conclusive: int = 0
    ess: list[float] = field(default_factory=list)
    widths: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ALL})


def list_settings() -> list[Setting]:
    return [
        Setting(world=make_bandit(sharpness=0.7, name="bandit, near")),
        Setting(world=make_bandit(sharpness=2.0, name="bandit, apart")),
        Setting(world=make_lake(behaviour=1, sharpness=3, name="lake, near")),
        Setting(world=make_lake(behaviour=0, sharpness=4, name="lake, apart")),
        Setting(world=make_lake(behaviour=0, sharpness=10, name="lake, far")),
        Setting(
            world=make_lake(behaviour=0, sharpness=40, name="lake, beyond"),
            is_thin=True,
        ),
    ]


def repeat(setting: Setting, *, repetitions: int, num_resamples: int) -> dict:
    """Figures of one setting."""
    world, tally = setting.world, Tally()
    value = world.compute_value(world.policy_SA)
    behaviour_value = world.compute_value(world.behaviour_SA)
    for repetition in range(repetitions):
        generator = np.random.default_rng([repetition, 7])
        turns, transitions = world.play(generator, num_tasks=NUM_TASKS, attempts=ATTEMPTS)
        found = evaluate_logged_turns(
            turns,
            None if setting.is_thin else transitions,
            num_resamples=num_resamples,
            seed=repetition,
        )
        count(tally, found, value=value, is_better=value > behaviour_value)
        if not is_thin(found):
            percentiles = find_percentiles(turns, num_resamples=num_resamples, seed=repetition)
            tally.hits["WIS by percentiles"] += percentiles[0] <= value <= percentiles[1]
    return {
        "value": round(value, 4),
        "behaviour_value": round(behaviour_value, 4),
        "repetitions": repetitions,
        "passed": tally.passed,
        "median_ess": round(float(np.median(tally.ess)), 1),
        "coverage": {n: round(h / tally.passed, 3) for n, h in tally.hits.items()},
        "passed_with_mean_weight": tally.checked,
        "coverage_with_mean_weight": {
            n: round(h / max(tally.checked, 1), 3) for n, h in tally.hits_checked.items()
        },
        "median_width": {n: round(float(np.median(w)), 3) for n, w in tally.widths.items() if w},
        "outcomes": dict(tally.outcomes),
        "doubts": dict(tally.doubts.most_common()),
        "wrong_verdicts": tally.wrong,
        "thin_but_conclusive": tally.thin_but_conclusive,
    }


def count(tally: Tally, found: Evaluation, *, value: float, is_better: bool) -> None:
    """Add one repetition."""
    outcome = found.verdict.outcome
    names = {doubt.name for doubt in found.verdict.doubts}
    tally.outcomes[outcome] += 1
    tally.doubts.update(names)
    tally.wrong += outcome == ("contradicted" if is_better else "supported")
    if found.basis.weights is not None:
        tally.ess.append(found.basis.weights.ess)
    if is_thin(found):
        tally.thin_but_conclusive += outcome != "inconclusive"
        return
    is_checked = "mean_weight_off" not in names
    tally.passed += 1
    tally.checked += is_checked
    for each in found.estimates:
        if each.interval is not None:
            is_hit = each.interval.contains(value)
            tally.hits[each.name] += is_hit
            tally.hits_checked[each.name] += is_hit and is_checked
            tally.widths[each.name].append(each.interval.high - each.interval.low)


def is_thin(found: Evaluation) -> bool:
    return bool(THIN & {doubt.name for doubt in found.verdict.doubts})


def find_percentiles(turns: LoggedTurns, *, num_resamples: int, seed: int) -> list[float]:
    """WIS's interval by the plain percentile bootstrap, to compare."""
    assert turns.log_ratios_NK is not None
    terms = build_wis_terms(turns.log_ratios_NK, turns.rewards_NK, turns.mask_NK)
    counts_BC = draw_clusters(NUM_TASKS, num_resamples=num_resamples, seed=seed)
    tops, bottoms = (
        counts_BC @ sum_clusters(each, turns.cluster_of_N, NUM_TASKS)[:, 0]
        for each in (terms.numerators_NF, terms.denominators_NF)
    )
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return torch.quantile(tops / bottoms, ends).tolist()


def judge(settings: list[Setting], figures: dict[str, dict]) -> list[dict]:
    """Targets, met or not."""
    targets = []
    for setting in settings:
        name, found = setting.world.name, figures[setting.world.name]
        for estimator in () if setting.is_thin else ALL:
            coverage = found["coverage"].get(estimator, 0.0)
            targets.append(
                {
                    "name": f"{name}: coverage of {estimator}",
                    "value": coverage,
                    "target": f"{LOW:.0%} to {HIGH:.0%}",
                    "met": LOW <= coverage <= HIGH,
                }
            )
        thin = found["thin_but_conclusive"]
        targets.append(
            {
                "name": f"{name}: conclusive below the floor",
                "value": thin,
                "target": 0,
                "met": thin == 0,
            }
        )
        wrong = found["wrong_verdicts"] / found["repetitions"]
        targets.append(
            {
                "name": f"{name}: wrong verdicts",
                "value": round(wrong, 4),
                "target": "at most 2.5%",
                "met": wrong <= 0.025,
            }
        )
        if setting.is_thin:
            share = found["outcomes"].get("inconclusive", 0) / found["repetitions"]
            targets.append(
                {
                    "name": f"{name}: inconclusive",
                    "value": round(share, 3),
                    "target": "at least 95%",
                    "met": share >= 0.95,
                }
            )
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="40 repetitions, 400 resamples")
    parser.add_argument("--json", type=Path, help="write figures and targets here")
    parser.add_argument("--repetitions", type=int, default=500)
    options = parser.parse_args()
    repetitions = 40 if options.quick else options.repetitions
    num_resamples = 400 if options.quick else 2000
    begun_s = time.monotonic()
    settings = list_settings()
    figures = {}
    for setting in settings:
        name = setting.world.name
        figures[name] = repeat(setting, repetitions=repetitions, num_resamples=num_resamples)
        print(name, json.dumps(figures[name]), flush=True)
    targets = judge(settings, figures)
    conclude(
        "ope_coverage",
        targets,
        {"figures": figures},
        begun_s=begun_s,
        is_quick=options.quick,
        path=options.json,
    )


if __name__ == "__main__":
    main()
