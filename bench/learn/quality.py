"""Behaviour models -> how good they are on unseen tasks: mediocre, and not the same every time.

    python -m learn.quality --output MODELS [--seeds 0 1 2] [--environments shop sokoban]

Models that are in MODELS already are not made again.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from learn.behaviour import make_behaviour
from learn.envs import GAMES
from learn.envs.protocol import GameEnvironment
from learn.lockstep import PlayedRun
from learn.play import play_runs


def describe_runs(runs: list[PlayedRun]) -> dict[str, float]:
    """What a table of behaviour models needs.

    `mixed` is the share of tasks that some attempts solved and others not; `unique_tokens` counts
    a run's last prompt and answer, in which all before are.
    """
    solved: dict[str, list[bool]] = {}
    for run in runs:
        solved.setdefault(run.attempt.task_id, []).append(run.reward >= 0.5)
    return {
        "success": float(np.mean([run.reward >= 0.5 for run in runs])),
        "mixed": float(np.mean([len(set(attempts)) == 2 for attempts in solved.values()])),
        "turns": float(np.mean([len(run.answers) for run in runs])),
        "unique_tokens": float(np.mean([len(r.prompts[-1]) + len(r.answers[-1]) for r in runs])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--environments", nargs="+", choices=list(GAMES), default=list(GAMES))
    parser.add_argument("--split", default="test")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--attempts", type=int, default=4)
    arguments = parser.parse_args()
    for name in arguments.environments:
        for seed in arguments.seeds:
            folder = arguments.output / f"{name}-{seed}"
            warmup_s = np.nan
            if not (folder / "warmup.json").exists():
                warmup_s = make_behaviour(name, seed, folder)["cpu_seconds"]
            started_s = time.process_time()
            runs = play_runs(
                folder,
                GameEnvironment(name),
                split=arguments.split,
                tasks=arguments.tasks,
                attempts=arguments.attempts,
                seed=0,
            )
            play_s = time.process_time() - started_s
            figures = " ".join(f"{key} {value:.3g}" for key, value in describe_runs(runs).items())
            print(f"{name} {seed}: {figures} warm-up {warmup_s:.3g} s play {play_s:.2g} s")


if __name__ == "__main__":
    main()
