"""Our evaluators beside rewards that benchmarks recorded.

    python bench/evaluators.py [--quick] [--json FILE]

tau-bench airline: 50 tasks, 4 runs of gpt-4o each, the expected actions known. Scores of the calls
against the recorded reward (the database's state and the required outputs): area under the ROC
curve, and agreement when a run is called done at a score of 1. That threshold was fixed before
anything was measured: all that is expected, and nothing else. Runs of tasks that expect no action
have no score and are counted.

FireAct, MINT, InterCode: several policies on the same tasks. How each metric orders the policies
(Kendall's tau) and the runs (AUC) beside their recorded rewards, and which of the metrics need a
reference. With two or three policies a tau proves nothing; their number is beside it.

Targets are on what has a reference. Metrics of the path alone are shown, whatever they are.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from evallib.corpora import DATA, WRITES, Run, read_airline, read_fireact, read_intercode, read_mint
from figures import conclude
from scipy.stats import kendalltau

from starpo_train.evals import (
    Evaluator,
    TaskCompletion,
    ToolSelectionAccuracy,
    TrajectoryScore,
    are_same_words,
    build_evaluator,
    evaluate_facts,
)

THRESHOLD = 1.0
SUCCESS = 1.0
"""A reward from here on is a success."""
PATH_ONLY = ("call_success", "no_loops", "no_redundancy")


def area_under_curve(scores: list[float], wins: list[bool]) -> float | None:
    """Chance that a success has the greater score than a failure, ties counting half."""
    good = [s for s, win in zip(scores, wins, strict=True) if win]
    bad = [s for s, win in zip(scores, wins, strict=True) if not win]
    if not good or not bad:
        return None
    above = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return round(above / (len(good) * len(bad)), 4)


def compare(evaluator: Evaluator, runs: list[Run], extra: dict[str, Any]) -> dict[str, Any]:
    """Scores of one evaluator beside recorded rewards."""
    results = [evaluate_facts([evaluator], run.facts | extra)[0] for run in runs]
    known = [
        (r.score, run.reward >= SUCCESS)
        for r, run in zip(results, runs, strict=True)
        if r.score is not None
    ]
    calls = [(score >= THRESHOLD, win) for score, win in known]
    confusion = {
        "done_and_rewarded": sum(said and win for said, win in calls),
        "done_not_rewarded": sum(said and not win for said, win in calls),
        "not_done_but_rewarded": sum(not said and win for said, win in calls),
        "not_done_not_rewarded": sum(not said and not win for said, win in calls),
    }
    agree = confusion["done_and_rewarded"] + confusion["not_done_not_rewarded"]
    rate = sum(win for _, win in known) / len(known) if known else 0.0
    return {
        "runs": len(runs),
        "scored": len(known),
        "null": len(runs) - len(known),
        "null_flags": count_flags(results),
        "auc": area_under_curve([s for s, _ in known], [w for _, w in known]),
        "agreement": round(agree / len(known), 4) if known else None,
        "agreement_of_always_no": round(1 - rate, 4),
        "confusion": confusion,
    }


def count_flags(results: list[Any]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for result in results:
        if result.score is None:
            counts["+".join(result.flags) or "none"] += 1
    return dict(sorted(counts.items()))


def measure_airline(runs: list[Run]) -> dict[str, Any]:
    """Figures of tau-bench airline."""
    writes = {"counted_tools": WRITES}
    figures = {
        "writes: ToolSelectionAccuracy": compare(ToolSelectionAccuracy(), runs, writes),
        "writes: TrajectoryScore": compare(TrajectoryScore(), runs, writes),
        "writes, arguments ignored": compare(
            ToolSelectionAccuracy(arguments="ignore"), runs, writes
        ),
        "writes, in order": compare(ToolSelectionAccuracy(figure="exact"), runs, writes),
        "all calls: f1": compare(ToolSelectionAccuracy(), runs, {}),
        "all calls: recall": compare(ToolSelectionAccuracy(figure="recall"), runs, {}),
        "all calls: TrajectoryScore": compare(TrajectoryScore(), runs, {}),
        "no reference: TaskCompletion": compare(
            TaskCompletion(), [strip_references(run) for run in runs], {}
        ),
    }
    return {"figures": figures, "by_step": measure_steps(runs)}


def strip_references(run: Run) -> Run:
    return Run(
        policy=run.policy,
        task=run.task,
        reward=run.reward,
        facts={"trajectory": run.facts["trajectory"]},
    )


def measure_steps(runs: list[Run]) -> dict[str, Any]:
    """ToolSelectionAccuracy by step: steps that changed something, right or not, by reward."""
    evaluator = ToolSelectionAccuracy()
    steps: dict[bool, list[float]] = {True: [], False: []}
    first_wrong: list[int] = []
    for run in runs:
        result = evaluator.evaluate(**run.facts, counted_tools=WRITES)
        scores = [step.score for step in result.steps if step.score is not None]
        steps[run.reward >= SUCCESS] += scores
        first_wrong += [i for i, score in enumerate(scores) if score < 1.0][:1]
    return {
        "steps_of_rewarded_runs": len(steps[True]),
        "right_of_rewarded_runs": mean(steps[True]),
        "steps_of_other_runs": len(steps[False]),
        "right_of_other_runs": mean(steps[False]),
        "auc": area_under_curve(
            steps[True] + steps[False], [True] * len(steps[True]) + [False] * len(steps[False])
        ),
        "runs_with_a_wrong_step": len(first_wrong),
        "median_place_of_first_wrong_step": statistics.median(first_wrong) if first_wrong else None,
    }


def mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def rank_policies(runs: list[Run], *, with_reference: tuple[Evaluator, ...]) -> dict[str, Any]:
    """How metrics order policies and runs beside the recorded rewards."""
    evaluators = [TrajectoryScore(), *(build_evaluator(name) for name in PATH_ONLY)]
    evaluators += with_reference
    referring = {each.name for each in with_reference}
    scores: dict[str, dict[str, list[tuple[float | None, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for run in runs:
        for result in evaluate_facts(evaluators, run.facts):
            scores[result.name][run.policy].append((result.score, run.reward))
        num_steps = len(run.facts["trajectory"])
        scores["fewest steps"][run.policy].append((-float(num_steps), run.reward))
    rewards = {
        policy: mean([reward for _, reward in pairs])
        for policy, pairs in scores["TrajectoryScore"].items()
    }
    return {
        "policies": len(rewards),
        "runs": len(runs),
        "rewards": rewards,
        "metrics": {
            name: {
                "needs_reference": name in referring,
                **describe_ranking(by_policy, rewards),
            }
            for name, by_policy in scores.items()
        },
    }


def describe_ranking(
    by_policy: dict[str, list[tuple[float | None, float]]], rewards: dict[str, float | None]
) -> dict[str, Any]:
    pairs = [pair for found in by_policy.values() for pair in found]
    known = [(score, reward) for score, reward in pairs if score is not None]
    means = {p: mean([s for s, _ in found if s is not None]) for p, found in by_policy.items()}
    ranked = [p for p, value in means.items() if value is not None]
    tau = None
    if len(ranked) > 1:
        value = kendalltau([means[p] for p in ranked], [rewards[p] for p in ranked]).statistic
        tau = None if math.isnan(value) else round(float(value), 4)
    return {
        "kendall_tau": tau,
        "policies_scored": len(ranked),
        "null": len(pairs) - len(known),
        "auc_of_runs": area_under_curve([s for s, _ in known], [r >= SUCCESS for _, r in known]),
        "means": means,
    }


def judge(figures: dict[str, Any], num_airline: int, num_without: int) -> list[dict[str, Any]]:
    """Targets, met or not."""
    airline = figures["tau-bench airline"]["figures"]
    writes = airline["writes: ToolSelectionAccuracy"]
    every = airline["all calls: f1"]
    blind = airline["no reference: TaskCompletion"]
    targets = [
        ("airline, writes: AUC", writes["auc"], "at least 0.85", writes["auc"] >= 0.85),
        (
            "airline, writes: agreement with the reward at 1",
            writes["agreement"],
            "at least 0.85",
            writes["agreement"] >= 0.85,
        ),
        (
            "airline: runs of tasks without expected actions have no score",
            every["null"],
            num_without,
            every["null"] == num_without,
        ),
        (
            "airline: TaskCompletion without reference, reward or judge has no score",
            blind["null"],
            num_airline,
            blind["null"] == num_airline,
        ),
    ]
    for name in ("FireAct", "MINT gsm8k"):
        found = figures[name]["metrics"]["TaskCompletion"]
        tau, auc = found["kendall_tau"], found["auc_of_runs"]
        targets += [
            (f"{name}: tau of TaskCompletion", tau, "at least 0.9", (tau or 0) >= 0.9),
            (f"{name}: AUC of TaskCompletion", auc, "at least 0.95", (auc or 0) >= 0.95),
        ]
    return [
        {"name": name, "value": value, "target": target, "met": bool(met)}
        for name, value, target, met in targets
    ]


def thin(runs: list[Run], *, quick: bool) -> list[Run]:
    """With `quick`, one task in four."""
    tasks = sorted({run.task for run in runs})
    kept = set(tasks[::4] if quick else tasks)
    return [run for run in runs if run.task in kept]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one task in four")
    parser.add_argument("--json", type=Path, help="write figures and targets here")
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there: the recorded runs are not part of the repository.")
    begun_s = time.monotonic()
    airline = thin(read_airline(), quick=options.quick)
    figures: dict[str, Any] = {"tau-bench airline": measure_airline(airline)}
    corpora = {
        # HotpotQA's references come without articles and punctuation
        "FireAct": (read_fireact(), (TaskCompletion(same=are_same_words),)),
        "MINT gsm8k": (read_mint("gsm8k"), (TaskCompletion(),)),
        "MINT alfworld": (read_mint("alfworld"), ()),
        "InterCode SQL": ([r for r in read_intercode() if r.policy.startswith("sql")], ()),
        "InterCode Bash": ([r for r in read_intercode() if r.policy.startswith("bash")], ()),
    }
    for name, (runs, with_reference) in corpora.items():
        figures[name] = rank_policies(
            thin(runs, quick=options.quick), with_reference=with_reference
        )
    for name, found in figures.items():
        print(name, json.dumps(found), flush=True)
    num_without = sum(not run.facts["expected_calls"] for run in airline)
    targets = judge(figures, len(airline), num_without)
    conclude(
        "evaluators",
        targets,
        {"threshold": THRESHOLD, "figures": figures},
        begun_s=begun_s,
        is_quick=options.quick,
        path=options.json,
    )


if __name__ == "__main__":
    main()
