"""Agent file -> its tasks, and the runs there are to play.

An agent file is ordinary Python with two functions: `tasks(split, count, seed)`, a list of dicts
with an "id" each, and `play(client, model, task, seed)`, one run that returns
{"reward": ..., "end": ...}.
"""

import importlib.util
import inspect
import sys
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from starpo_train.errors import RolloutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run to play."""

    task: dict[str, Any]
    number: int
    """0.. within the task."""
    seed: int


def load_agent(path: Path) -> ModuleType:
    """Import an agent file; its folder joins `sys.path`, as when it is run.

    Raises:
        RolloutError: no such file, it fails to import, or it lacks `tasks` or `play`.
    """
    if not path.is_file():
        raise RolloutError(f"{path}: no such agent file; evaluate.agent must name a Python file")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RolloutError(f"{path}: not a Python file; evaluate.agent must name one")
    agent = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(agent)
    except Exception as error:
        raise RolloutError(f"{path}: the agent file fails to import: {error!r}") from error
    for name, parameters in (("tasks", 3), ("play", 4)):
        function = getattr(agent, name, None)
        if not callable(function) or len(inspect.signature(function).parameters) < parameters:
            raise RolloutError(
                f"{path}: has no usable `{name}`; an agent file defines tasks(split, count, seed) "
                "and play(client, model, task, seed)"
            )
    return agent


def list_attempts(
    agent: ModuleType, path: Path, *, split: str, tasks: int, attempts: int, seed: int
) -> list[Attempt]:
    """Every run there is to play, attempt by attempt so that an early stop covers all tasks.

    Raises:
        RolloutError: `tasks` gave something else than dicts with different ids.
    """
    found = agent.tasks(split, tasks, seed)
    ids = [task.get("id") if isinstance(task, dict) else None for task in found]
    if not found or not all(isinstance(task_id, str) for task_id in ids):
        raise RolloutError(
            f"{path}: tasks({split!r}, {tasks}, {seed}) must give "
            'a list of dicts, each with a string "id"'
        )
    if repeated := [task_id for task_id, count in Counter(ids).items() if count > 1]:
        raise RolloutError(f"{path}: tasks gave the id {repeated[0]!r} more than once")
    return [
        Attempt(task=task, number=number, seed=_seed(seed, task["id"], number))
        for number in range(attempts)
        for task in found
    ]


def _seed(seed: int, task_id: str, attempt: int) -> int:
    """The same run of the same task has the same seed, whichever policy plays it."""
    digest = blake2b(f"{seed}/{task_id}/{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) % 2**31
