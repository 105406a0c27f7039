"""Trajectories to lay out: invented ones, and recorded conversations in a real tokenizer's tokens."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from starpo_train.tokens import TurnTokens

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TURNS = 8
PROMPT_OF_GROUP = 1200


def make_turn(number: int, prompt: np.ndarray, response: np.ndarray) -> TurnTokens:
    return TurnTokens(
        turn=number,
        prompt_ids_T=prompt,
        response_ids_T=response,
        logprobs_T=None,
        recorded=True,
        trained=True,
    )


def _draw(generator: np.random.Generator, mean: int) -> np.ndarray:
    length = int(generator.integers(mean // 2, mean * 3 // 2))
    return generator.integers(0, 4096, length)


def _go_on(generator: np.random.Generator, start: np.ndarray, *, drop: float) -> list[TurnTokens]:
    """Eight turns; of each answer the first `drop` is gone from later prompts."""
    history, turns = start, []
    for number in range(TURNS):
        response = _draw(generator, 52)
        turns.append(make_turn(number, history, response))
        kept = response[int(len(response) * drop) :]
        history = np.concatenate([history, kept, _draw(generator, 78)])
    return turns


def make_linear(num_runs: int, *, seed: int) -> list[list[TurnTokens]]:
    """Runs that share nothing."""
    generator = np.random.default_rng(seed)
    return [_go_on(generator, _draw(generator, 264), drop=0.0) for _ in range(num_runs)]


def make_groups(num_groups: int, *, seed: int) -> list[list[TurnTokens]]:
    """Eight attempts at each task, after one prompt."""
    generator = np.random.default_rng(seed)
    runs = []
    for _ in range(num_groups):
        prompt = generator.integers(0, 4096, PROMPT_OF_GROUP)
        runs += [_go_on(generator, prompt, drop=0.0) for _ in range(8)]
    return runs


def make_branches(num_runs: int, *, seed: int) -> list[list[TurnTokens]]:
    """Runs whose answers lose their first 60 % in later prompts."""
    generator = np.random.default_rng(seed)
    return [_go_on(generator, _draw(generator, 264), drop=0.6) for _ in range(num_runs)]


def make_airline(num_tasks: int, *, vocabulary: int) -> list[list[TurnTokens]]:
    """Recorded conversations of some tasks; token ids folded into a small vocabulary."""
    files = sorted((SHARED / "tau-bench-gpt4o-airline").rglob("*.json"))
    tokenizer_path = SHARED / "tokenizer-smollm2-135m-instruct.tar.gz"
    if not files or not tokenizer_path.is_file():
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(_read_member(tokenizer_path, "tokenizer.json"))
    by_task: dict[Any, list[Any]] = {}
    for run in json.loads(files[0].read_text()):
        by_task.setdefault(run["task_id"], []).append(run["traj"])
    chosen = [traj for task in sorted(by_task)[:num_tasks] for traj in by_task[task]]
    return [list(_encode(traj, tokenizer, vocabulary)) for traj in chosen]


def _encode(
    messages: list[dict[str, Any]], tokenizer: Any, vocabulary: int
) -> Iterator[TurnTokens]:
    history, number = np.empty(0, dtype=np.int64), 0
    for message in messages:
        text = f"<{message['role']}>{message.get('content') or ''}"
        text += json.dumps(message.get("tool_calls") or "")
        ids = np.array(tokenizer.encode(text).ids, dtype=np.int64) % vocabulary
        if message["role"] == "assistant":
            yield make_turn(number, history, ids)
            number += 1
        history = np.concatenate([history, ids])


def _read_member(path: Path, name: str) -> str:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(name):
                file = archive.extractfile(member)
                assert file is not None
                return file.read().decode()
    raise SystemExit(f"{path} has no {name}")
