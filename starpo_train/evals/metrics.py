"""ActionPath -> loops, redundancy, failures, permission, budgets: figures that need no reference answer."""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

from starpo_train.evals.calls import canonical_json
from starpo_train.evals.path import ActionPath, PathStep, ToolCall

LOOP_FROM, LOOP_MOST = 3, 6
"""The same call so often is a loop; so often, nothing but one."""


def call_key(call: ToolCall) -> tuple[str, str]:
    """What makes two calls the same: name and arguments, however they are written."""
    return call.name, canonical_json(call.arguments)


def count_repeats(calls: Sequence[ToolCall]) -> int:
    """How often the most repeated call was made; 0 without calls."""
    return max(Counter(map(call_key, calls)).values(), default=0)


def find_cycle(calls: Sequence[ToolCall]) -> int | None:
    """Length of the shortest cycle that the calls end in, gone through at least three times.

    >>> a, b = (ToolCall(name=name, arguments={}) for name in "ab")
    >>> find_cycle([b, a, b, a, b, a, b]), find_cycle([a, a, b])
    (2, None)
    """
    keys = [call_key(call) for call in calls]
    for length in range(1, len(keys) // LOOP_FROM + 1):
        tail = keys[-LOOP_FROM * length :]
        if all(tail[i] == tail[i % length] for i in range(len(tail))):
            return length
    return None


def score_loops(calls: Sequence[ToolCall]) -> float | None:
    """1; .5 when a call was made three times, 0 when six times; None without calls."""
    repeats = count_repeats(calls)
    if not repeats:
        return None
    return 1.0 if repeats < LOOP_FROM else 0.5 if repeats < LOOP_MOST else 0.0


def list_redundant(calls: Sequence[ToolCall]) -> list[int]:
    """Places of calls that repeat an earlier one and brought nothing else than it did.

    Where results are known and differ, the repetition was worth something: the state had changed.

    >>> look = ToolCall(name="look", arguments={}, result="door")
    >>> list_redundant([look, look, ToolCall(name="look", arguments={}, result="key")])
    [1]
    """
    seen: dict[tuple[str, str], set[str | None]] = {}
    redundant = []
    for i, call in enumerate(calls):
        results = seen.setdefault(call_key(call), set())
        if results and (call.result in results or call.result is None):
            redundant.append(i)
        results.add(call.result)
    return redundant


def list_failed(calls: Sequence[ToolCall]) -> list[int]:
    """Places of calls that are known to have failed, or whose arguments cannot be read."""
    return [i for i, call in enumerate(calls) if call.is_ok is False or call.arguments is None]


def list_forbidden(calls: Sequence[ToolCall], allowed: Collection[str]) -> list[int]:
    """Places of calls to tools that were not allowed, failed ones too: they were tried."""
    return [i for i, call in enumerate(calls) if call.name not in allowed]


def count_stalls(steps: Sequence[PathStep]) -> int:
    """Steps that say and do just what the step before did."""
    shown = [(step.text, tuple(map(call_key, step.calls))) for step in steps]
    return sum(a == b != (None, ()) for a, b in pairwise(shown))


def score_budget(used: float, budget: float) -> float:
    """1 within the budget, else budget / used.

    >>> score_budget(8, 10), score_budget(20, 10)
    (1.0, 0.5)
    """
    return 1.0 if used <= budget else budget / used


def choose_calls(path: ActionPath, counted: Collection[str] | None) -> tuple[ToolCall, ...]:
    """Calls of the tools that count, in order; None: of all tools."""
    return tuple(call for call in path.calls if counted is None or call.name in counted)
