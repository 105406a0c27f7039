"""Tasks of a build -> their results, one after the other or side by side.

Every executor gives the same results in the same order, because a task is a pure function of what
it is given. `serial` works in this process; `process` in new ones on this machine; `ray` on a Ray
cluster, whose nodes must see the dataset's folder and the sources under the same paths.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from starpo_trace.errors import ConfigError

Task = TypeVar("Task")
Result = TypeVar("Result")

EXECUTORS: Final = ("serial", "process", "ray")

_AHEAD_PER_WORKER: Final = 2


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    executor: str = "serial",
    num_workers: int | None = None,
) -> Iterator[Result]:
    """Function and tasks -> results, in the order of the tasks.

    Args:
        function: a function of a module, which other processes can import.
        tasks: what it is called with; taken as workers become free.
        executor: `serial`, `process` or `ray`.
        num_workers: processes, or tasks at a time; default: the CPUs there are.

    Raises:
        ConfigError: the executor is none of these, or its package is missing.
    """
    if executor == "serial":
        return map(function, tasks)
    if executor == "process":
        return _run_in_processes(function, tasks, num_workers or os.cpu_count() or 1)
    if executor == "ray":
        return _run_on_ray(function, tasks, num_workers)
    raise ConfigError(f"executor {executor!r} is none of {', '.join(EXECUTORS)}")


def _run_in_processes(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int
) -> Iterator[Result]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Not forked: Polars has threads. One thread each, since there are as many processes as CPUs.
    with (
        _environment(POLARS_MAX_THREADS="1"),
        ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool,
    ):
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= num_workers * _AHEAD_PER_WORKER:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _run_on_ray(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int | None
) -> Iterator[Result]:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "executor ray: the package ray is missing; pip install 'starpo[scale]'"
        ) from None
    if not ray.is_initialized():
        ray.init(num_cpus=num_workers, log_to_driver=False)
    ahead = int(num_workers or ray.cluster_resources().get("CPU", 1)) * _AHEAD_PER_WORKER
    remote = ray.remote(num_cpus=1)(function)
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(remote.remote(task))
        if len(waiting) >= ahead:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables that new processes inherit, where the user has not set them."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
