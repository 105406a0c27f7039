"""Agent file -> its tasks, and the runs there are to play.

An agent file is ordinary Python with two functions: `tasks(split, count, seed)`, a list of dicts
with an "id" each, and `play(client, model, task, seed)`, one run that returns
{"reward": ..., "end": ...}.
"""

import inspect
import math
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from starpo_train.attempts import Attempt, number_attempts
from starpo_train.environments.loading import import_file
from starpo_train.errors import RolloutError

End = Literal["terminated", "truncated"]
"""How a run may end: of itself, or cut by a limit."""
ENDS: tuple[End, ...] = get_args(End)


def load_agent(path: Path) -> ModuleType:
    """Import an agent file; its folder joins `sys.path`, as when it is run.

    Raises:
        RolloutError: no such file, it fails to import, or it lacks `tasks` or `play`.
    """
    if not path.is_file():
        raise RolloutError(f"{path}: no such agent file; evaluate.agent must name a Python file")
    agent = import_file(path, "the agent file")
    for name, parameters in (("tasks", 3), ("play", 4)):
        function = getattr(agent, name, None)
        if not callable(function) or len(inspect.signature(function).parameters) < parameters:
            raise RolloutError(
                f"{path}: has no usable `{name}`; an agent file defines tasks(split, count, seed) "
                "and play(client, model, task, seed)"
            )
    return agent


def read_outcome(result: Any, path: Path) -> tuple[float, End]:
    """What `play` returned -> the run's reward and how it ended.

    Raises:
        RolloutError: it is something else.
    """
    with suppress(AttributeError, TypeError, ValueError, OverflowError):
        reward, end = result.get("reward"), result.get("end", "terminated")
        if not isinstance(reward, str) and isinstance(end, str) and end in ENDS:
            number = float(reward)
            if math.isfinite(number):
                return number, end
    raise RolloutError(
        f'{path}: play returned {result!r}; it must return {{"reward": NUMBER, "end": END}}, END one of '
        f"{', '.join(ENDS)}"
    )


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
    by_id = [(task["id"], task) for task in found]
    return number_attempts(by_id, where=str(path), attempts=attempts, seed=seed)
