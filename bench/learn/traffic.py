"""Behaviour model + tasks -> recorded runs -> dataset, the way that anybody would record them.

`starpo-train evaluate` plays the environment on the built-in server, instrumented, with token ids
and log-probabilities; the dataset is what its export makes of the spans. An interrupted recording
goes on where it was.

    python -m learn.traffic frozen_lake --model MODEL --split train --tasks 96 --attempts 4 --output DIR
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from learn.behaviour import MAX_ANSWER_TOKENS
from learn.envs import GAMES
from starpo_train.environments.endpoint import Sampling
from starpo_train.evaluation_file import EvaluateConfig, EvaluateSection
from starpo_train.rollout import evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What was recorded."""

    dataset: Path
    summary: dict[str, object]
    """As in `summary.json`."""
    cpu_seconds: float
    """Of this process and its server."""


def record_traffic(  # noqa: PLR0913 - a plan, in keywords
    environment: str,
    model: Path,
    output: Path,
    *,
    split: str = "train",
    tasks: int = 96,
    attempts: int = 4,
    seed: int = 0,
    policy_id: str = "behaviour",
    temperature: float = 1.0,
    concurrency: int = 64,
    token_ids: bool = True,
) -> Traffic:
    """Play and record what is not recorded yet -> `output / "dataset"`.

    Without `token_ids` the model is like a closed one: text alone.
    """
    started_s = _cpu_seconds()
    section = EvaluateSection(
        environment="learn.envs.protocol:GameEnvironment",
        environment_args={"game": environment},
        model=str(model),
        output=output,
        policy_id=policy_id,
        sampling=Sampling(
            temperature=temperature, max_tokens=MAX_ANSWER_TOKENS, token_ids=token_ids
        ),
        max_turns=GAMES[environment].max_turns,
        split=split,
        tasks=tasks,
        attempts=attempts,
        concurrency=concurrency,
        seed=seed,
    )
    result = evaluate(EvaluateConfig(evaluate=section))
    return Traffic(
        dataset=result.dataset,
        summary=result.summary,
        cpu_seconds=round(_cpu_seconds() - started_s, 1),
    )


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", choices=list(GAMES))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--tasks", type=int, default=96)
    parser.add_argument("--attempts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    traffic = record_traffic(
        arguments.environment, arguments.model, arguments.output, split=arguments.split,
        tasks=arguments.tasks, attempts=arguments.attempts, seed=arguments.seed,
    )  # fmt: skip
    print(json.dumps({**traffic.summary, "cpu_seconds": traffic.cpu_seconds}, indent=2))


if __name__ == "__main__":
    main()
