"""One job for each game and seed: the options, the workers and the measure of the bench's smaller parts."""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from learn.envs import GAMES
from learn.play import play
from learn.whole import FULL

Results = dict[tuple[str, int], Any]
"""(Game, seed) -> what the job returned."""


def do_each(
    job: Callable[[Path, str, int], Any], *, about: str | None, games: Sequence[str]
) -> tuple[Results, Path | None]:
    """Command line -> `job(root, game, seed)` for each, seed by seed; where the JSON is to go."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("learn-output"))
    parser.add_argument("--only", nargs="+", choices=GAMES, default=list(games))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs = [(game, seed) for seed in options.seeds for game in options.only]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(job, options.output.resolve(), *pair) for pair in pairs]
        done = {pair: future.result() for pair, future in zip(pairs, jobs, strict=True)}
    return done, options.json


def measure(model: Path, game: str, seed: int, *, temperature: float = 1.0) -> float:
    """Success on unseen tasks, the table's."""
    runs = play(
        model,
        game,
        split="test",
        tasks=FULL.test_tasks,
        attempts=FULL.test_attempts,
        seed=seed,
        temperature=temperature,
    )
    return float((runs["reward"] >= 0.5).mean() or 0.0)
