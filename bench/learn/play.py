"""Checkpoint -> many runs at once in this process -> their rewards. For hundreds of checkpoints.

The same runs, token for token, as `traffic.py` records through the server, without HTTP and spans.
"""

from contextlib import nullcontext
from pathlib import Path

import polars as pl
import torch

from learn.envs.protocol import GameEnvironment
from learn.lockstep import Lockstep, PlayedRun
from starpo_train.attempts import number_attempts
from starpo_train.model import choose_device
from starpo_train.serve.loading import load_model

MOST_ROWS = 512
"""Runs at the same time."""


def play(
    model_path: str | Path,
    environment: str,
    *,
    split: str,
    tasks: int,
    attempts: int,
    seed: int,
    temperature: float = 1.0,
) -> pl.DataFrame:
    """Play a split -> one row per run.

    Columns: task_id, cohort, attempt, seed, reward, end, num_steps (answers and tool
    calls, as in datasets), input_tokens and output_tokens (summed over its calls).
    """
    game = GameEnvironment(environment)
    runs = play_runs(
        model_path, game, split=split, tasks=tasks, attempts=attempts, seed=seed,
        temperature=temperature,
    )  # fmt: skip
    return pl.DataFrame(
        {
            "task_id": [run.attempt.task_id for run in runs],
            "cohort": [run.attempt.task.cohort for run in runs],
            "attempt": [run.attempt.number for run in runs],
            "seed": [run.attempt.seed for run in runs],
            "reward": [run.reward for run in runs],
            "end": [run.end for run in runs],
            "num_steps": [len(run.answers) + run.num_calls for run in runs],
            "input_tokens": [sum(map(len, run.prompts)) for run in runs],
            "output_tokens": [sum(map(len, run.answers)) for run in runs],
        }
    )


@torch.inference_mode()
def play_runs(
    model_path: str | Path,
    environment: GameEnvironment,
    *,
    split: str,
    tasks: int,
    attempts: int,
    seed: int,
    temperature: float = 1.0,
    most_rows: int = MOST_ROWS,
) -> list[PlayedRun]:
    """Play a split -> its runs, in the order of `number_attempts`; `most_rows` at once."""
    torch.set_num_threads(1)
    found = environment.tasks(split, tasks, seed)
    numbered = number_attempts(
        [(task.id, task) for task in found],
        where=environment.name, attempts=attempts, seed=seed,
    )  # fmt: skip
    model, tokenizer = load_model(model_path)
    device = choose_device("auto")
    player = Lockstep(model.to(device), tokenizer, environment, temperature=temperature)
    runs: list[PlayedRun] = []
    with nullcontext() if device.type == "cpu" else device:  # tensors are made there
        for first in range(0, len(numbered), most_rows):
            runs += player.play(numbered[first : first + most_rows])
    return runs
