"""Task -> episode -> what each answer of the model led to.

An environment is any object with `name`, `version`, `tasks` and `start`; nothing has to be
inherited. Everything here is plain data: messages and tools are those of OpenAI's chat completions.

    class Guess:                                   # one number, three tries
        name, version = "guess", "1"

        def tasks(self, split, count, seed):
            return [Task(id=f"{split}-{n}", input=n % 10) for n in range(count)]

        def start(self, task, seed):
            return GuessEpisode(task.input)

    class GuessEpisode:
        tools = ()

        def __init__(self, number):
            self.number = number
            self.messages = [{"role": "user", "content": "Guess my number, 0 to 9."}]

        def act(self, message):
            if message.get("content") == str(self.number):
                return Feedback(end="terminated", reward=1.0)
            return Feedback(messages=[{"role": "user", "content": "No. Again?"}])

        def cut(self):
            return 0.0

        def close(self):
            pass

What an episode raises is the environment's failure, never the model's: the run gets no reward and
is played again at the next start. What the model does wrong belongs into the feedback.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from starpo_train.environments.endpoint import Endpoint, Sampling

Message = dict[str, Any]
"""A chat message in OpenAI's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do; its attempts are compared with each other."""

    id: str
    """Stays the same whoever plays it, whenever."""
    input: Any = None
    """What the environment needs to begin it."""
    cohort: str | None = None
    """Slice of the tasks that a release gate watches separately."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """What is known to be right, by the keys of `docs/evaluators.md` (`expected_calls`,
    `required_outputs`, `expected_state` ...); written to `OUTPUT/references.jsonl`."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that readers should know, as JSON; written to `OUTPUT/tasks.jsonl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What one message of the model led to."""

    messages: Sequence[Message] = ()
    """What the model reads next: a tool message for each of its calls, or a user's turn."""
    process_reward: float | None = None
    """What the message was worth by itself; None where nobody says."""
    state: Any = None
    """How the world looks now, as JSON; None: not told."""
    end: Literal["terminated", "truncated"] | None = None
    """`terminated`: it came to its end; `truncated`: a limit of the environment's; None: go on."""
    reward: float | None = None
    """The outcome, with `end` only: what the whole run was worth."""
    reason: str | None = None
    """Why it ended, in words."""


class Episode(Protocol):
    """One run in progress. It is played in one thread and closed once.

    It may have a `state`, too: how the world looks at the beginning, recorded before the first call.
    """

    @property
    def messages(self) -> Sequence[Message]:
        """What the model reads first."""
        ...

    @property
    def tools(self) -> Sequence[dict[str, Any]]:
        """Function tools with JSON schemas, as they are sent; empty: none."""
        ...

    def act(self, message: Message) -> Feedback:
        """The model's message -> what it led to. Each of its tool calls has to be answered.

        `message` has `role`, `content` (text or None) and `tool_calls` where there are some; their
        arguments are the model's own text, which may be no JSON (`calls.CallEpisode` sees to that).
        """
        ...

    def cut(self) -> float:
        """The run is stopped from outside (turns, context length) -> its reward."""
        ...

    def close(self) -> None:
        """Give back what the episode holds; called however it ended."""
        ...


class Environment(Protocol):
    """Tasks, and how one is begun. Used by several threads at once.

    It may have `solve(task)`, too: the messages of an agent that solves it, for the gate's preflight.
    """

    @property
    def name(self) -> str:
        """Recorded with every run."""
        ...

    @property
    def version(self) -> str | None:
        """Runs of different versions are not compared."""
        ...

    def tasks(self, split: str, count: int, seed: int) -> Sequence[Task]:
        """Up to `count` tasks of a split; the same seed gives the same ones."""
        ...

    def start(self, task: Task, seed: int) -> Episode:
        """Begin a task. The same seed begins it the same way."""
        ...


class Run(Protocol):
    """One run that an environment with a loop of its own plays."""

    @property
    def task(self) -> Task:
        """What to do."""
        ...

    @property
    def number(self) -> int:
        """Which attempt at the task, from 0."""
        ...

    @property
    def seed(self) -> int:
        """Of this run alone."""
        ...

    @property
    def is_stopped(self) -> bool:
        """Whether the evaluation is being stopped: begin no more."""
        ...

    def record(self) -> AbstractContextManager[Any]:
        """`with run.record() as trajectory:` around everything that the model does in it."""
        ...

    def finish(self, reward: float) -> None:
        """It is over and its reward is recorded."""
        ...

    def fail(self, error: BaseException) -> None:
        """It is over without a reward; the next start plays it again."""
        ...


class OwnLoop(Protocol):
    """An environment that plays the model by itself, as Inspect and verifiers do."""

    @property
    def name(self) -> str:
        """Recorded with every run."""
        ...

    @property
    def version(self) -> str | None:
        """Runs of different versions are not compared."""
        ...

    def tasks(self, split: str, count: int, seed: int) -> Sequence[Task]:
        """Up to `count` tasks of a split; the same seed gives the same ones."""
        ...

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
        """Play all of them; each run is finished or failed as soon as it is over.

        `max_turns` None: the environment's own limit. `folder` is for files of its own, such as
        logs; it need not exist.
        """
        ...
