"""Runs to play -> futures of their rewards, whoever has the loop: an agent file, we, or others."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import starpo_trace
from starpo_train.agentfile import list_attempts, load_agent, read_outcome
from starpo_train.attempts import Attempt, number_attempts
from starpo_train.environments.endpoint import Endpoint
from starpo_train.environments.loading import load_environment
from starpo_train.environments.play import MAX_TURNS, Ask, ask_model, follow, play_episode
from starpo_train.environments.protocol import Task
from starpo_train.errors import EnvironmentFailedError, RolloutError
from starpo_train.evaluation_file import EvaluateSection


class Player(Protocol):
    """Knows the runs, and how they are played."""

    @property
    def environment(self) -> tuple[str | None, str | None]:
        """Name and version, where they are known."""
        ...

    def list_attempts(self) -> list[Attempt]:
        """Every run of the evaluation."""
        ...

    def submit(
        self,
        pool: Executor,
        attempts: Sequence[Attempt],
        endpoint: Endpoint,
        client: Any,
        stop: threading.Event,
    ) -> set[Future[float | None]]:
        """Begin to play; a future gives a run's reward, None where it was stopped before."""
        ...


def make_player(options: EvaluateSection) -> Player:
    """Evaluation file -> who plays.

    Raises:
        RolloutError: the agent file or the environment cannot be used.
    """
    if options.agent is not None:
        return AgentPlayer(options)
    found: Any = load_environment(str(options.environment), options.environment_args)
    has_own_loop = hasattr(found, "play_runs")
    if options.player != "model" and has_own_loop:
        raise RolloutError(
            f"evaluate.player = {options.player!r}: {found.name} plays the model by itself"
        )
    if options.player == "oracle" and not hasattr(found, "solve"):
        raise RolloutError(
            f"evaluate.player = 'oracle': {found.name} knows no solutions; give it "
            "solve(task), the messages of an agent that solves it"
        )
    return (OwnLoopPlayer if has_own_loop else EnvironmentPlayer)(options, found)


class AgentPlayer:
    """An agent file: `play(client, model, task, seed)`."""

    def __init__(self, options: EvaluateSection) -> None:
        assert options.agent is not None  # noqa: S101
        self._options, self._path = options, options.agent
        self._agent = load_agent(options.agent)

    @property
    def environment(self) -> tuple[str | None, str | None]:
        """As the file says."""
        return (
            getattr(self._agent, "ENVIRONMENT_NAME", None),
            getattr(self._agent, "ENVIRONMENT_VERSION", None),
        )

    def list_attempts(self) -> list[Attempt]:
        """Of its `tasks`."""
        options = self._options
        return list_attempts(
            self._agent,
            self._path,
            split=options.split,
            tasks=options.tasks,
            attempts=options.attempts,
            seed=options.seed,
        )

    def submit(
        self,
        pool: Executor,
        attempts: Sequence[Attempt],
        endpoint: Endpoint,
        client: Any,
        stop: threading.Event,
    ) -> set[Future[float | None]]:
        """One thread a run."""

        def play(attempt: Attempt) -> float:
            cohort = attempt.task.get("cohort")
            with _record(self._options, self._path.stem, attempt, cohort, *self.environment) as run:
                result = self._agent.play(client, endpoint.model, attempt.task, attempt.seed)
                reward, end = read_outcome(result, self._path)
                starpo_trace.reward(reward)
                run.end(end)
            return reward

        return _submit_each(pool, attempts, stop, play)


class EnvironmentPlayer:
    """An environment, played by the built-in loop."""

    def __init__(self, options: EvaluateSection, environment: Any) -> None:
        self._options, self._environment = options, environment

    @property
    def environment(self) -> tuple[str | None, str | None]:
        """As it says."""
        return self._environment.name, self._environment.version

    def list_attempts(self) -> list[Attempt]:
        """Of its `tasks`.

        Raises:
            RolloutError: it has none, or gives something else.
        """
        options = self._options
        where = f"environment {self._environment.name!r}"
        call = f"tasks({options.split!r}, {options.tasks}, {options.seed})"
        try:
            tasks = list(self._environment.tasks(options.split, options.tasks, options.seed))
        except RolloutError:
            raise
        except Exception as error:
            raise RolloutError(f"{where}: {call} failed: {error!r}") from error
        wrong = [task for task in tasks if not (isinstance(task, Task) and task.id)]
        if wrong or not tasks:
            found = repr(wrong[0]) if wrong else "nothing"
            raise RolloutError(f"{where}: {call} must give Tasks with an id, got {found}")
        return number_attempts(
            [(task.id, task) for task in tasks],
            where=where,
            attempts=options.attempts,
            seed=options.seed,
        )

    def submit(
        self,
        pool: Executor,
        attempts: Sequence[Attempt],
        endpoint: Endpoint,
        client: Any,
        stop: threading.Event,
    ) -> set[Future[float | None]]:
        """One thread a run."""
        options = self._options

        def play(attempt: Attempt) -> float:
            with self._begin(attempt) as run:
                outcome = play_episode(
                    self._make_agent(attempt, endpoint, client),
                    self._environment,
                    attempt.task,
                    seed=attempt.seed,
                    max_turns=options.max_turns or MAX_TURNS,
                )
                starpo_trace.reward(outcome.reward)
                run.end(outcome.end, reason=outcome.reason)
            return outcome.reward

        return _submit_each(pool, attempts, stop, play)

    def _make_agent(self, attempt: Attempt, endpoint: Endpoint, client: Any) -> Ask:
        if self._options.player == "null":
            return follow(())
        if self._options.player == "oracle":
            return follow(self._environment.solve(attempt.task))
        sampling = self._options.sampling
        return ask_model(client, endpoint.model, sampling, seed=attempt.seed)

    def _begin(self, attempt: Attempt) -> Any:
        name, version = self.environment
        return _record(self._options, str(name), attempt, attempt.task.cohort, name, version)


class OwnLoopPlayer(EnvironmentPlayer):
    """An environment that has its own loop: it gets all runs at once, in one thread."""

    def submit(
        self,
        pool: Executor,
        attempts: Sequence[Attempt],
        endpoint: Endpoint,
        client: Any,
        stop: threading.Event,
    ) -> set[Future[float | None]]:
        """A future for each run, done as the environment says so."""
        options = self._options
        runs = [_Run(attempt=each, stop=stop, begin=self._begin) for each in attempts]

        def play() -> None:
            try:
                self._environment.play_runs(
                    runs,
                    endpoint,
                    options.sampling,
                    concurrency=options.concurrency,
                    max_turns=options.max_turns,
                    folder=options.output / "environment",
                )
                left: BaseException = EnvironmentFailedError(
                    f"environment {self._environment.name!r} left a run without a result"
                )
            except BaseException as error:  # noqa: BLE001 (each run's future carries it)
                left = error
            for run in runs:
                if stop.is_set() and not run.future.done():
                    run.future.set_result(None)
                run.fail(left)

        pool.submit(play)
        return {run.future for run in runs}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of an environment with a loop of its own."""

    attempt: Attempt
    stop: threading.Event
    begin: Any
    future: Future[float | None] = field(default_factory=Future)

    @property
    def task(self) -> Task:
        return self.attempt.task

    @property
    def number(self) -> int:
        return self.attempt.number

    @property
    def seed(self) -> int:
        return self.attempt.seed

    @property
    def is_stopped(self) -> bool:
        return self.stop.is_set()

    def record(self) -> Any:
        return self.begin(self.attempt)

    def finish(self, reward: float) -> None:
        if not self.future.done():
            self.future.set_result(reward)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _submit_each(
    pool: Executor,
    attempts: Sequence[Attempt],
    stop: threading.Event,
    play: Callable[[Attempt], float],
) -> set[Future[float | None]]:
    """One thread a run; those that have not begun when it is to stop never do."""

    def play_or_leave(attempt: Attempt) -> float | None:
        return None if stop.is_set() else play(attempt)

    return {pool.submit(play_or_leave, attempt) for attempt in attempts}


def _record(
    options: EvaluateSection,
    name: str,
    attempt: Attempt,
    cohort: str | None,
    environment_name: str | None,
    environment_version: str | None,
) -> Any:
    """The trajectory of a run."""
    return starpo_trace.trajectory(
        name,
        task_id=attempt.task_id,
        attempt=attempt.number,
        seed=attempt.seed,
        policy_id=options.policy_id,
        environment_name=environment_name,
        environment_version=environment_version,
        cohort=cohort,
    )
