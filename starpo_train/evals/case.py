"""What a caller knows of a run -> EvaluationCase: what evaluators look at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from starpo_train.evals.calls import hash_state
from starpo_train.evals.path import (
    ActionPath,
    MalformedPathError,
    ToolCall,
    drop_thoughts,
    read_call,
    read_path,
)


class Reference(TypedDict, total=False):
    """What is known of how a task should go. Everything may be left out."""

    expected_output: str
    """The right answer, to be given in just these words or this number."""
    expected_tool: str
    """A tool that has to be called; other calls are not judged."""
    expected_tools: Sequence[str]
    """Every tool that has to be called, as often as it stands here; others are wrong."""
    expected_calls: Sequence[Any]
    """Every call that has to be made: names, `{"name": ..., "arguments": {...}}`, ToolCalls."""
    expected_steps: Sequence[Any]
    """The call of each step, by its place; None: that step is not judged."""
    expected_state: Any
    """The state at the end, as JSON values."""
    expected_state_hash: str
    """`hash_state` of it, or the hash that the environment gives."""
    required_outputs: Sequence[str]
    """What has to be told to the user, each as whole words."""
    allowed_tools: Sequence[str]
    """Calls of any other tool are violations."""
    counted_tools: Sequence[str]
    """Only calls of these are held against the expected ones: those that change something, say."""
    max_steps: int
    max_tokens: int


class Facts(Reference, total=False):
    """What is known of a run, and how it should have gone. Everything may be left out."""

    input: Any
    """What the user wanted."""
    output: Any
    """What the agent answered at the end; or the run, as `trajectory`."""
    trajectory: Any
    """Messages or steps: `read_path`."""
    context: Any
    """What the agent was given to work with: texts, by default what its tools answered."""
    state: Any
    """The state at the end, as JSON values."""
    state_hash: str
    num_tokens: int
    """Read and written over the whole run."""
    reward: float
    """What a verifier gave it, from 0 to 1."""


FACTS = tuple(Facts.__annotations__)
REFERENCES = tuple(Reference.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationCase:
    """One run, as evaluators see it."""

    facts: Mapping[str, Any]
    """As given."""
    path: ActionPath | None
    """None: no trajectory was given."""
    expected: tuple[ToolCall, ...] | None
    """None: nobody said which calls are expected; () that none is."""

    @property
    def goal(self) -> str | None:
        """What the user wanted."""
        given = self.facts.get("input")
        return given if isinstance(given, str) else self.path.goal if self.path else None

    @property
    def answer(self) -> str | None:
        """What the agent said at the end."""
        output = self.facts.get("output")
        if isinstance(output, str):
            return drop_thoughts(output)
        return self.path.final_text if self.path else None

    @property
    def said(self) -> tuple[str, ...]:
        """Everything the agent said to the user."""
        steps = self.path.steps if self.path else ()
        texts = [step.text for step in steps if step.text is not None]
        return tuple(texts if texts else [self.answer] if self.answer is not None else [])

    def hash_states(self) -> tuple[str | None, str | None]:
        """(hash of the state at the end, hash that it should have)."""
        hashes = []
        for name in ("state", "expected_state"):
            given = self.facts.get(f"{name}_hash")
            if given is None and self.facts.get(name) is not None:
                given = hash_state(self.facts[name])
            hashes.append(given)
        return hashes[0], hashes[1]


def build_case(facts: Mapping[str, Any]) -> EvaluationCase:
    """Facts -> case.

    Raises:
        MalformedPathError: trajectory or expected calls cannot be read.
        TypeError: a fact of an unknown name.
    """
    unknown = sorted(facts.keys() - set(FACTS))
    if unknown:
        raise TypeError(f"unknown fact {unknown[0]!r}; known: {', '.join(FACTS)}")
    try:
        return _read(facts)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        if isinstance(error, MalformedPathError):
            raise
        raise MalformedPathError(f"{type(error).__name__}: {error}") from error


def _read(facts: Mapping[str, Any]) -> EvaluationCase:
    _check(facts)
    given = facts.get("trajectory")
    if given is None and not isinstance(facts.get("output"), str | None):
        given = facts["output"]
    return EvaluationCase(
        facts=facts, path=None if given is None else read_path(given), expected=_expect(facts)
    )


def read_number(value: Any, *, low: float = 0.0, high: float = 1.0) -> float | None:
    """A number from `low` to `high`, or None: also for NaN and what is out of range."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and low <= value <= high else None


def _check(facts: Mapping[str, Any]) -> None:
    for key in ("expected_tools", "expected_calls", "expected_steps", "required_outputs"):
        if isinstance(facts.get(key), str):
            raise MalformedPathError(f"`{key}` is one text; give a list")
    for key in ("allowed_tools", "counted_tools"):
        if isinstance(facts.get(key), str):
            raise MalformedPathError(f"`{key}` is one text; give a list")
    for key in ("max_steps", "max_tokens"):
        if facts.get(key) is not None and read_number(facts[key], high=math.inf) is None:
            raise MalformedPathError(f"`{key}` is {facts[key]!r}; give a number")


def _expect(facts: Mapping[str, Any]) -> tuple[ToolCall, ...] | None:
    if facts.get("expected_calls") is not None:
        return tuple(read_call(each) for each in facts["expected_calls"])
    if facts.get("expected_tools") is not None:
        return tuple(read_call(each) for each in facts["expected_tools"])
    return None
