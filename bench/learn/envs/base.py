"""Drawn task -> split, actions, outcomes: what the five games have in common.

A game is plain Python: it knows nothing of models or messages. `protocol.py` shows it to
`starpo_train.environments`, `behaviour.py` lets a careless demonstrator play it.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

HASHED_SPLITS = ("train", "train", "test", "warmup", "tuning")
"""A task's hash picks one of these."""
SHIFTED = "shifted"
"""Tasks of another distribution, in a split of their own."""
SPLITS = ("warmup", "train", "tuning", "test", SHIFTED)
MOST_DRAWS = 200_000

Spec = Mapping[str, Any]
"""What a task consists of, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GameTask:
    """One task."""

    id: str
    cohort: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Action:
    """One tool call."""

    tool: str
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one action led to."""

    observation: str
    """What the agent reads next."""
    reward: float = 0.0
    end: str | None = None
    """None while the run goes on, else `terminated` or `truncated`."""


class Game(ABC):
    """One run of one task."""

    name: ClassVar[str]
    system: ClassVar[str]
    tools: ClassVar[Sequence[dict[str, Any]]]
    max_turns: ClassVar[int]
    """Answers after which every run is over."""

    @classmethod
    @abstractmethod
    def draw(cls, rng: random.Random, split: str) -> Spec | None:
        """A random task's spec; None when what came out is unusable."""

    @classmethod
    @abstractmethod
    def cohort(cls, spec: Spec) -> str:
        """Which kind of task this is."""

    @classmethod
    def split_of(cls, spec: Spec) -> str:
        """The one split that a task of the usual distribution belongs to."""
        return hashed_split(json.dumps(spec, sort_keys=True))

    @abstractmethod
    def __init__(self, spec: Spec, seed: int) -> None:
        """Start a run; `seed` decides whatever chance decides in it."""

    @abstractmethod
    def begin(self) -> str:
        """The first message to the agent."""

    @abstractmethod
    def act(self, action: Action) -> Outcome:
        """Play one action.

        Raises:
            ValueError: there is no such action; what to say to the agent.
        """

    @abstractmethod
    def best(self) -> Action:
        """The best action now."""

    @abstractmethod
    def careless(self, rng: random.Random) -> Action:
        """What a demonstrator does who does not look."""

    @abstractmethod
    def think(self, action: Action) -> str:
        """What the demonstrator says before an action."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What is the case now, for the trace."""


def draw_tasks(game: type[Game], split: str, count: int, seed: int) -> list[GameTask]:
    """`count` different tasks of a split; the same seed gives the same tasks.

    Raises:
        ValueError: the split does not exist, or has fewer tasks than asked for.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = random.Random(f"{game.name}/{split}/{seed}")
    found: dict[str, GameTask] = {}
    for _ in range(MOST_DRAWS):
        if len(found) == count:
            return list(found.values())
        spec = game.draw(rng, split)
        if spec is None or (split != SHIFTED and game.split_of(spec) != split):
            continue
        digest = blake2b(json.dumps(spec, sort_keys=True).encode(), digest_size=6).hexdigest()
        task = GameTask(id=f"{game.name}-{digest}", cohort=game.cohort(spec), spec=spec)
        found[task.id] = task
    raise ValueError(f"{count} tasks of {game.name}'s {split!r} were asked for; {len(found)} exist")


def hashed_split(text: str) -> str:
    """The split that a text's hash picks."""
    return HASHED_SPLITS[blake2b(text.encode()).digest()[0] % len(HASHED_SPLITS)]


def make_tool(name: str, argument: str) -> dict[str, Any]:
    """A tool with one argument. Which words it may be is the game's to say, in few tokens."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }


def read_argument(action: Action, key: str, allowed: Sequence[str]) -> str:
    """An argument's value, or a ValueError that says what is allowed."""
    value = action.arguments.get(key)
    if value is None or value not in allowed:
        raise ValueError(f"{key} must be one of {' '.join(allowed)}.")
    return value
