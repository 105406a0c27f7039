"""Tasks -> the runs there are to play, each with its own seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from starpo_train.errors import RolloutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run to play."""

    task_id: str
    task: Any
    """As an agent file or an environment gave it."""
    number: int
    """0.. within the task."""
    seed: int


def number_attempts(
    tasks: Sequence[tuple[str, Any]], *, where: str, attempts: int, seed: int
) -> list[Attempt]:
    """(id, task) -> every run, attempt by attempt so that an early stop covers all tasks.

    Raises:
        RolloutError: two tasks have the same id; `where` says whose they are.
    """
    ids = Counter(task_id for task_id, _ in tasks)
    if repeated := [task_id for task_id, count in ids.items() if count > 1]:
        raise RolloutError(f"{where}: tasks gave the id {repeated[0]!r} more than once")
    return [
        Attempt(task_id=task_id, task=task, number=number, seed=derive_seed(seed, task_id, number))
        for number in range(attempts)
        for task_id, task in tasks
    ]


def derive_seed(seed: int, task_id: str, attempt: int) -> int:
    """The same run of the same task has the same seed, whichever policy plays it."""
    digest = blake2b(f"{seed}/{task_id}/{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) % 2**31
