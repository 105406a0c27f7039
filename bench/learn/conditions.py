"""One log, five ways it reaches the trainer.

| condition | what is different |
|---|---|
| `exact` | token ids and log-probabilities as sampled, four attempts at each task |
| `closed` | the same runs as a closed model's API gives them: text, no ids, no log-probabilities |
| `single` | as many runs, each of another task |
| `late` | the reward comes afterwards from users: one in five never, and one in seven the wrong way |
| `shift` | trained on `exact`, tested on tasks of another distribution |
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import starpo_trace
from learn.traffic import record_traffic
from starpo_trace.convert.dataset import TRUST_SOURCES, build_dataset
from starpo_train.dataset import scan_table

CONDITIONS = ("exact", "closed", "single", "late", "shift")
DATA_OF = {"shift": "exact"}
"""Conditions that train on another one's data."""
HELD_BACK = 0.25
"""Share of a log's tasks that nothing is trained on, for off-policy evaluation."""
SILENT_SHARE, WRONG_SHARE = 1 / 5, 1 / 7
"""Of the users of `late`: how many say nothing, and how many of the rest are wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """How much is recorded."""

    tasks: int
    attempts: int

    @property
    def runs(self) -> int:
        return self.tasks * self.attempts


def record(
    environment: str,
    condition: str,
    *,
    model: Path,
    folder: Path,
    log: Log,
    seed: int,
    concurrency: int = 64,
) -> None:
    """The condition's dataset at `folder / condition / "data"`; `late` is made of `exact`."""
    output = folder / condition
    if condition == "late":
        collect_late_rewards(folder / "exact", output, seed=seed)
        trusted = ("user",)
    else:
        tasks, attempts = (log.runs, 1) if condition == "single" else (log.tasks, log.attempts)
        record_traffic(
            environment,
            model,
            output,
            tasks=tasks,
            attempts=attempts,
            seed=seed,
            concurrency=concurrency,
            token_ids=condition != "closed",
        )
        trusted = TRUST_SOURCES
    build_dataset(
        [output / "traces"],
        output / "data",
        test_fraction=HELD_BACK,
        trust_sources=trusted,
    )


def collect_late_rewards(recorded: Path, output: Path, *, seed: int) -> None:
    """Copy the traces, and let users judge each run once it is over."""
    traces = output / "traces"
    if traces.exists():
        shutil.rmtree(traces)  # interrupted: begun anew, or some users would speak twice
    shutil.copytree(recorded / "traces", traces)
    runs = (
        scan_table(recorded / "dataset", "trajectories")
        .select("trajectory_id", "task_id", "attempt", "reward")
        .sort("task_id", "attempt")
        .collect()
    )
    users = random.Random(f"late/{seed}")
    starpo_trace.instrument(store=traces)
    try:
        for trajectory_id, task_id, attempt, reward in runs.iter_rows():
            is_silent, is_wrong = users.random() < SILENT_SHARE, users.random() < WRONG_SHARE
            if is_silent:
                continue
            starpo_trace.reward(
                1.0 - reward if is_wrong else reward,
                trajectory_id=trajectory_id,
                task_id=task_id,
                source="user",
                reward_id=f"user/{task_id}/{attempt}",
            )
        if not starpo_trace.flush(30.0):
            raise OSError(f"{traces}: rewards could not be written: {starpo_trace.stats()}")
    finally:
        starpo_trace.uninstrument()
