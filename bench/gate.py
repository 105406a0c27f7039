"""The gate on made-up releases whose true difference is known: how often it is wrong, and decides.

    python bench/gate.py [--quick] [--json FILE]

A release is 100 tasks x 4 attempts of both policies. A task's success rate under the baseline is
Beta(1.2, 1.2), kept within 0.13 and 0.92; under the candidate it is that plus the planted difference
plus or minus 0.05 (a coin per task). So attempts at a task are correlated, policies are correlated
over tasks, and the difference over tasks deviates by sigma_d of about 0.31 (printed). Nothing is
cut off, so that the mean difference is exactly the planted one.

`decide_paired` is the gate's own decision, on the primary metric (no guardrails). Beside it are rules
in use elsewhere, on the same releases. Then nine looks, 100 new tasks before each: PROMOTE at any of
them, with the bounds for a single look and with those of the e-process.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
from figures import conclude
from scipy.stats import norm, t

from starpo_train.gate import GateConfig, decide_paired
from starpo_train.gate.pairing import PairedTasks, PolicyTasks

NUM_TASKS, ATTEMPTS, NUM_LOOKS = 100, 4, 9
MARGIN, ALPHA = 0.03, 0.05
SPREAD = 0.05
CHANGES = (-0.05, -0.03, 0.0, 0.03)
ONCE = GateConfig(guardrails=(), alpha=ALPHA, margin_success=MARGIN, min_cohort_tasks=10**9)
SEQUENTIAL = GateConfig(
    guardrails=(), alpha=ALPHA, margin_success=MARGIN, min_cohort_tasks=10**9, looks="sequential"
)


def draw_release(
    rng: np.random.Generator, *, num_tasks: int, change: float
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (tasks x attempts) of the candidate and of the baseline."""
    base_T = np.clip(rng.beta(1.2, 1.2, num_tasks), 0.13, 0.92)
    cand_T = base_T + change + SPREAD * rng.choice((-1.0, 1.0), num_tasks)
    assert np.abs(cand_T - 0.5).max() <= 0.5
    shape = (num_tasks, ATTEMPTS)
    return rng.random(shape) < cand_T[:, None], rng.random(shape) < base_T[:, None]


def pair(cand_TK: np.ndarray, base_TK: np.ndarray) -> PairedTasks:
    """Outcomes -> what the gate makes of the rows of two datasets."""
    num_tasks = len(cand_TK)
    return PairedTasks(
        task_ids=tuple(f"task-{i}" for i in range(num_tasks)),
        cohorts=(None,) * num_tasks,
        candidate=summarize(cand_TK),
        baseline=summarize(base_TK),
        only_candidate=(),
        only_baseline=(),
        num_without_task=0,
    )


def summarize(outcomes_TK: np.ndarray) -> PolicyTasks:
    rates_T = outcomes_TK.mean(axis=1)
    counts_T = np.full(len(rates_T), float(outcomes_TK.shape[1]))
    return PolicyTasks(
        success_T=rates_T,
        success_low_T=rates_T,
        success_high_T=rates_T,
        tokens_T=np.full(len(rates_T), np.nan),
        steps=(np.array([]),) * len(rates_T),
        attempts_T=counts_T,
        rewarded_T=counts_T,
    )


def mean_of_one_attempt(cand_TK: np.ndarray, base_TK: np.ndarray) -> bool:
    return bool(cand_TK[:, 0].mean() >= base_TK[:, 0].mean())


def mean_of_all_attempts(cand_TK: np.ndarray, base_TK: np.ndarray) -> bool:
    return bool(cand_TK.mean() >= base_TK.mean())


def unpaired_runs(cand_TK: np.ndarray, base_TK: np.ndarray) -> bool:
    """Within margin by a test that takes every run as independent."""
    error = sqrt(sum(side.std(ddof=1) ** 2 / side.size for side in (cand_TK, base_TK)))
    return bool(cand_TK.mean() - base_TK.mean() - norm.ppf(1 - ALPHA) * error > -MARGIN)


def unpaired_tasks(cand_TK: np.ndarray, base_TK: np.ndarray) -> bool:
    """Within margin by a test that averages attempts, but does not pair tasks."""
    means = [side.mean(axis=1) for side in (cand_TK, base_TK)]
    error = sqrt(sum(side.var(ddof=1) / len(side) for side in means))
    quantile = t.ppf(1 - ALPHA, 2 * len(cand_TK) - 2)
    return bool(means[0].mean() - means[1].mean() - quantile * error > -MARGIN)


RULES: dict[str, Callable[[np.ndarray, np.ndarray], bool]] = {
    "mean >= baseline's, 1 attempt": mean_of_one_attempt,
    "mean >= baseline's, 4 attempts": mean_of_all_attempts,
    "within margin, unpaired, runs as independent": unpaired_runs,
    "within margin, unpaired, by task": unpaired_tasks,
}
GATE = "the gate: within margin, paired, by task"


def run_once(change: float, *, repeats: int) -> dict:
    """Shares of PROMOTE by rule, and all answers of the gate, over single looks."""
    rng = np.random.default_rng([8, round(1000 * (change + 1))])
    promoted, answers, improved, deviations = Counter(), Counter(), 0, []
    for _ in range(repeats):
        cand_TK, base_TK = draw_release(rng, num_tasks=NUM_TASKS, change=change)
        for name, rule in RULES.items():
            promoted[name] += rule(cand_TK, base_TK)
        decision = decide_paired(pair(cand_TK, base_TK), config=ONCE)
        answers[decision.verdict.value] += 1
        improved += decision.improved
        deviations.append((cand_TK.mean(1) - base_TK.mean(1)).std(ddof=1))
    promoted[GATE] = answers["PROMOTE"]
    return {
        "releases": repeats,
        "sigma_d": round(float(np.sqrt(np.mean(np.square(deviations)))), 4),
        "promoted": {name: promoted[name] / repeats for name in (*RULES, GATE)},
        "gate": {name: answers[name] / repeats for name in ("PROMOTE", "BLOCK", "INCONCLUSIVE")},
        "decided": 1 - answers["INCONCLUSIVE"] / repeats,
        "called_improved": improved / repeats,
    }


def run_looks(change: float, *, repeats: int) -> dict:
    """Nine looks, 100 new tasks before each, until an answer: the share of each by mode."""
    rng = np.random.default_rng([9, round(1000 * (change + 1))])
    found: dict[str, dict] = {}
    answers = {mode: Counter() for mode in ("once", "sequential")}
    tasks = {mode: [] for mode in answers}
    improved = Counter()
    for _ in range(repeats):
        cand_TK, base_TK = draw_release(rng, num_tasks=NUM_TASKS * NUM_LOOKS, change=change)
        for mode, config in (("once", ONCE), ("sequential", SEQUENTIAL)):
            answer, ended, is_improved = "INCONCLUSIVE", NUM_TASKS * NUM_LOOKS, False
            for look in range(1, NUM_LOOKS + 1):
                num = look * NUM_TASKS
                paired = pair(cand_TK[:num], base_TK[:num])
                decision = decide_paired(paired, config=config, look=look)
                is_improved |= decision.improved
                if decision.verdict != "INCONCLUSIVE":
                    answer, ended = decision.verdict.value, num
                    break
            answers[mode][answer] += 1
            improved[mode] += is_improved
            tasks[mode].append(ended)
    for mode, counts in answers.items():
        found[mode] = {
            **{name: counts[name] / repeats for name in ("PROMOTE", "BLOCK", "INCONCLUSIVE")},
            "mean_tasks": round(float(np.mean(tasks[mode])), 1),
            "called_improved": improved[mode] / repeats,
        }
    return {"releases": repeats, "looks": NUM_LOOKS, **found}


def judge(once: dict[str, dict], looks: dict[str, dict], *, is_quick: bool) -> list[dict]:
    """Targets, met or not; errors may exceed alpha by two standard errors of the simulation.

    The few releases of --quick are given three, and power as much as well.
    """

    def bound(repeats: int) -> float:
        return round(ALPHA + (2 + is_quick) * sqrt(ALPHA * (1 - ALPHA) / repeats), 4)

    at_margin, equal = once["-3"], once["0"]
    worse = once["-5"]
    limit, limit_looks = bound(at_margin["releases"]), bound(looks["-3"]["releases"])
    rows = [
        ("PROMOTE at -3 points", at_margin["gate"]["PROMOTE"], "at most", limit),
        ("BLOCK at -3 points", at_margin["gate"]["BLOCK"], "at most", limit),
        ("PROMOTE at -5 points", worse["gate"]["PROMOTE"], "at most", limit),
        ("PROMOTE at 0 points", equal["gate"]["PROMOTE"], "at least", 0.15 if is_quick else 0.24),
        ("called improved at 0 points", equal["called_improved"], "at most", limit),
        (
            "nine looks, e-process: PROMOTE at -3 points",
            looks["-3"]["sequential"]["PROMOTE"],
            "at most",
            limit_looks,
        ),
        (
            "nine looks, e-process: BLOCK at -3 points",
            looks["-3"]["sequential"]["BLOCK"],
            "at most",
            limit_looks,
        ),
        (
            "nine looks, bounds for one look: PROMOTE at -3 points",
            looks["-3"]["once"]["PROMOTE"],
            "above",
            limit_looks,
        ),
    ]
    holds = {
        "at most": lambda value, limit: value <= limit,
        "at least": lambda value, limit: value >= limit,
        "above": lambda value, limit: value > limit,
    }
    return [
        {
            "name": name,
            "value": round(value, 4),
            "target": f"{how} {limit:g}",
            "met": holds[how](value, limit),
        }
        for name, value, how, limit in rows
    ]


def print_tables(once: dict[str, dict], looks: dict[str, dict]) -> None:
    print(f"\nPROMOTE, 100 tasks x 4 attempts, margin 3 points{'':3}", *once, sep="\t")
    for name in (*RULES, GATE):
        print(f"{name:48}", *(f"{f['promoted'][name]:.3f}" for f in once.values()), sep="\t")
    for name in ("BLOCK", "INCONCLUSIVE"):
        print(f"  {name:46}", *(f"{f['gate'][name]:.3f}" for f in once.values()), sep="\t")
    for name in ("decided", "called_improved", "sigma_d"):
        print(f"  {name:46}", *(f"{f[name]:.3f}" for f in once.values()), sep="\t")
    print(f"\nNine looks, 100 new tasks before each{'':11}", *looks, sep="\t")
    for mode in ("once", "sequential"):
        for name in ("PROMOTE", "BLOCK", "INCONCLUSIVE", "mean_tasks"):
            figures = (f"{f[mode][name]:.3f}" for f in looks.values())
            print(f"{mode + ': ' + name:48}", *figures, sep="\t")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="200 releases and 60 series of looks")
    parser.add_argument("--json", type=Path, help="write figures and targets here")
    parser.add_argument("--repeats", type=int, default=10_000, help="releases per difference")
    parser.add_argument("--series", type=int, default=1_000, help="series of looks per difference")
    options = parser.parse_args()
    repeats, series = (200, 60) if options.quick else (options.repeats, options.series)
    begun_s = time.monotonic()
    names = {change: f"{100 * change:+.0f}".replace("+0", "0") for change in CHANGES}
    once = {names[change]: run_once(change, repeats=repeats) for change in CHANGES}
    looks = {names[change]: run_looks(change, repeats=series) for change in CHANGES}
    print_tables(once, looks)
    targets = judge(once, looks, is_quick=options.quick)
    conclude(
        "gate",
        targets,
        {
            "population": {
                "tasks": NUM_TASKS,
                "attempts": ATTEMPTS,
                "baseline": "Beta(1.2, 1.2) within [0.13, 0.92]",
                "candidate": f"baseline + difference +/- {SPREAD}",
                "margin": MARGIN,
                "alpha": ALPHA,
            },
            "once": once,
            "looks": looks,
        },
        begun_s=begun_s,
        is_quick=options.quick,
        path=options.json,
    )


if __name__ == "__main__":
    main()
