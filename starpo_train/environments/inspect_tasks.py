"""An Inspect task -> recorded runs. Inspect has the loop, the sandboxes and the scorers; we watch.

Its solver is wrapped, so that what the evaluated model does in it is a trajectory; what graders and
simulated users ask other models is not recorded. The reward comes once Inspect has scored.
"""

# pyright: reportMissingImports=false
# It is not installed beside everything else.

import copy
import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import starpo_trace
from starpo_train.environments.endpoint import Endpoint, Sampling
from starpo_train.environments.inspect_scores import choose_reward, read_scores
from starpo_train.environments.loading import find_attribute
from starpo_train.environments.protocol import Run, Task
from starpo_train.environments.recording import draw_seed, not_recorded, recorded, seeded
from starpo_train.errors import EnvironmentFailedError, RolloutError


class InspectEnvironment:
    """`inspect:module:task`, `inspect:file.py:task`, or the name of a registered one, `package/task`.

    Args:
        spec: Where the task, or the function that makes it, is.
        scorer: Whose score is the reward, `name` or `name.key` of a score with several values;
            default: the first.
        cohort: Key of the samples' metadata that is their cohort.
        sandbox: As in `inspect_ai.eval`; default the task's own.
        eval_args: More arguments of `inspect_ai.eval`, such as `token_limit`.
        task_args: Arguments of the task's function.

    Raises:
        RolloutError: Inspect is not installed, or there is no such task.
    """

    def __init__(
        self,
        spec: str,
        *,
        scorer: str | None = None,
        cohort: str | None = None,
        sandbox: Any = None,
        eval_args: Mapping[str, Any] | None = None,
        **task_args: Any,
    ) -> None:
        if importlib.util.find_spec("inspect_ai") is None:
            raise RolloutError("Inspect is missing: pip install inspect-ai")
        self._make = _find_task(spec, task_args)
        self._scorer, self._cohort = scorer, cohort
        self._eval_args = dict(eval_args or {})
        if sandbox is not None:
            self._eval_args["sandbox"] = sandbox
        task = self._make()
        self.name = str(task.name)
        self.version: str | None = str(task.version)
        self._samples = {
            str(number if sample.id is None else sample.id): sample
            for number, sample in enumerate(task.dataset, start=1)
        }

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Up to `count` samples, drawn by the seed; Inspect's tasks know no splits.

        A task's id is `task name/sample id`, as in the dataset that `starpo-trace export` makes of
        Inspect's logs.
        """
        _ = split
        ids = list(self._samples)
        if count < len(ids):
            ids = sorted(Random(seed).sample(ids, count), key=ids.index)  # noqa: S311
        return [
            Task(id=f"{self.name}/{each}", input=each, cohort=self._find_cohort(each))
            for each in ids
        ]

    def _find_cohort(self, sample_id: str) -> str | None:
        found = (self._samples[sample_id].metadata or {}).get(self._cohort)
        return None if found is None else str(found)

    def play_runs(
        self,
        runs: Sequence[Run],
        endpoint: Endpoint,
        sampling: Sampling,
        *,
        concurrency: int,
        max_turns: int | None,
        folder: Path,
    ) -> None:
        """One evaluation of Inspect's for each attempt, all at once; its logs stay in `folder`.

        Raises:
            EnvironmentFailedError: Inspect itself failed.
        """
        import inspect_ai

        by_number: dict[int, list[Run]] = defaultdict(list)
        for run in runs:
            by_number[run.number].append(run)
        watched = _Watched(self._scorer)
        tasks = [self._prepare(some, watched) for some in by_number.values()]
        options = {"turn_limit": max_turns} if max_turns is not None else {}
        with not_recorded(), _listening(watched):
            logs = inspect_ai.eval(
                tasks,
                model=_connect(endpoint, sampling),
                display="none",
                log_dir=str(folder),
                log_level="warning",
                max_tasks=len(tasks),
                max_samples=max(1, math.ceil(concurrency / len(tasks))),
                max_connections=concurrency,
                fail_on_error=False,
                **_sampling_args(sampling),
                **options,
                **self._eval_args,
            )
        for log in logs:
            if log.error is not None:
                raise EnvironmentFailedError(f"inspect:{self.name} failed: {log.error.message}")

    def _prepare(self, runs: Sequence[Run], watched: "_Watched") -> Any:
        """The task, with the samples of these runs alone, and its solver recorded."""
        from inspect_ai import task_with
        from inspect_ai.dataset import MemoryDataset

        task = self._make()
        samples = []
        for run in runs:
            sample = self._samples[run.task.input].model_copy(deep=True)
            sample.id = run.task.input
            samples.append(sample)
        by_id = {run.task.input: run for run in runs}
        return task_with(
            task,
            dataset=MemoryDataset(samples, name=task.dataset.name),
            solver=_record(task.solver, by_id, watched),
            epochs=1,
        )


class _Watched:
    """Inspect's samples in progress -> our runs."""

    def __init__(self, scorer: str | None) -> None:
        self._scorer = scorer
        self.runs: dict[str, tuple[Run, str]] = {}
        """uuid of a sample -> its run, and the id of its trajectory."""

    def end(self, sample: Any) -> None:
        """A sample is over and scored, or failed."""
        run, trajectory_id = self.runs.pop(sample.uuid, (None, ""))
        if run is None:
            return
        where = f"Inspect's sample {sample.id!r}, attempt {run.number}"
        if sample.error is not None:
            message = f"{where} failed: {sample.error.message}"
            run.fail(EnvironmentFailedError(message))
            return
        try:
            numbers = read_scores(sample.scores or {})
            name, reward = choose_reward(numbers, self._scorer)
        except ValueError as error:
            run.fail(EnvironmentFailedError(f"{where}: {error}"))
            return
        first = (sample.scores or {})[name.partition(".")[0]]
        with recorded():
            common: dict[str, Any] = {"trajectory_id": trajectory_id, "task_id": run.task.id}
            starpo_trace.reward(reward, label=name, explanation=first.explanation, **common)
            for other, number in numbers.items():
                if other != name and number is not None:
                    starpo_trace.reward(number, name=other, **common)
        run.finish(reward)


def _record(solver: Any, runs: Mapping[str, Run], watched: _Watched) -> Any:
    """Solver or agent -> a solver that does the same within a trajectory."""
    from inspect_ai.agent import as_solver, is_agent
    from inspect_ai.model import messages_to_openai
    from inspect_ai.solver import chain
    from inspect_ai.solver import solver as register
    from inspect_ai.util import LimitExceededError

    inner = as_solver(solver) if is_agent(solver) else chain(solver)

    @register(name="starpo_recorded")
    def watch() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            run = runs[str(state.sample_id)]
            if run.is_stopped:
                raise EnvironmentFailedError("the evaluation is being stopped")
            limit: LimitExceededError | None = None
            with recorded(), run.record() as trajectory:
                watched.runs[state.uuid] = run, trajectory.id
                try:
                    with seeded(run.seed), not_recorded():
                        state = await inner(state, generate)
                    if state.output.stop_reason == "model_length":
                        trajectory.end("truncated", reason="context_length")
                except LimitExceededError as error:
                    limit = error
                    trajectory.end("truncated", reason=error.type)
                if state.messages and state.messages[-1].role != "assistant":
                    starpo_trace.observe(await messages_to_openai(state.messages))
            if limit is not None:
                raise limit
            return state

        return solve

    return watch()


@contextmanager
def _listening(watched: _Watched) -> Iterator[None]:
    """Tell `watched` of every sample that is over."""
    from inspect_ai.hooks import Hooks, hooks

    global _listener  # noqa: PLW0603 (Inspect keeps its hooks for good)
    if _listener is None:

        @hooks(name="starpo", description="Records scores as rewards.")
        class Listener(Hooks):
            watched: _Watched | None = None

            async def on_sample_end(self, data: Any) -> None:
                if Listener.watched is not None:
                    Listener.watched.end(data.sample)

        _listener = Listener
    _listener.watched = watched
    try:
        yield
    finally:
        _listener.watched = None


_listener: Any = None


def _connect(endpoint: Endpoint, sampling: Sampling) -> Any:
    """The endpoint as a model of Inspect's, whose calls within a run are recorded."""
    from inspect_ai.model import GenerateConfig, get_model

    model = get_model(
        f"openai-api/starpo/{endpoint.model}",
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        config=GenerateConfig(**_sampling_args(sampling), max_retries=endpoint.max_retries),
        memoize=False,
    )
    ask: Any = model.api.generate

    async def generate(input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
        seed = draw_seed()
        if seed is None:  # a grader, who asks the same model
            return await ask(input, tools, tool_choice, config)
        with recorded():
            config = config.model_copy(update={"seed": seed})
            return await ask(input, tools, tool_choice, config)

    model.api.generate = generate
    return model


def _sampling_args(sampling: Sampling) -> dict[str, Any]:
    args: dict[str, Any] = {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.top_p != 1:
        args["top_p"] = sampling.top_p
    if sampling.stop:
        args["stop_seqs"] = list(sampling.stop)
    return args | sampling.build_extras()


def _find_task(spec: str, args: Mapping[str, Any]) -> Callable[[], Any]:
    """Where a task is -> what makes a new one of it each time."""
    import inspect_ai

    where = f"evaluate.environment = 'inspect:{spec}'"
    if ":" not in spec:
        from inspect_ai._eval.loader import load_tasks

        return lambda: load_tasks([spec], dict(args))[0]
    found = find_attribute(spec, where=where)
    if isinstance(found, inspect_ai.Task):
        if args:
            raise RolloutError(f"{where}: is a Task already; environment_args = {dict(args)}?")
        return lambda: copy.copy(found)
    return lambda: found(**args)
