"""Expected calls, calls -> which belong together, and every figure that follows.

Suffixes: P calls that were made, R calls that are expected.

P and R are multisets: a call that is expected once and made three times is right once and wrong
twice. Which call stands for which expected one is chosen by maximum-weight bipartite matching, not
first come, first served: with `superset` arguments a greedy choice gives another score when two
calls swap places.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from starpo_train.evals.calls import Arguments, compare_calls
from starpo_train.evals.path import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMatch:
    """How the calls of a run fit those that are expected."""

    num_calls: int
    num_expected: int
    pairs: tuple[tuple[int, int], ...]
    """(call, expected call), by their places."""
    weight: float
    """Sum over pairs of how far they are the same; their number, where that is 0 or 1."""
    lcs: float
    """Weight of the best pairing that keeps the order."""
    exact: bool
    """The same calls in the same order."""
    in_order: bool
    """Every expected call is there, in that order, among others."""
    any_order: bool
    """Every expected call is there."""
    unordered: bool
    """The same calls in any order."""
    subset: bool
    """No call that is not expected."""

    @property
    def precision(self) -> float | None:
        """Of the calls made, the share that is expected; None without calls."""
        return self.weight / self.num_calls if self.num_calls else None

    @property
    def recall(self) -> float | None:
        """Of the calls expected, the share that was made; None without expected ones."""
        return self.weight / self.num_expected if self.num_expected else None

    @property
    def f1(self) -> float | None:
        """2 weight / (calls made + calls expected); None without expected ones."""
        if not self.num_expected:
            return None
        return 2 * self.weight / (self.num_calls + self.num_expected)

    @property
    def lcs_score(self) -> float | None:
        """Share of the expected calls that was made in order; None without expected ones."""
        return self.lcs / self.num_expected if self.num_expected else None


def match_calls(
    calls_P: Sequence[ToolCall], expected_R: Sequence[ToolCall], arguments: Arguments = "exact"
) -> CallMatch:
    """Calls and expected calls -> CallMatch.

    >>> made = [ToolCall(name=name, arguments={}) for name in ("a", "b", "b")]
    >>> found = match_calls(made, made[:2])
    >>> found.precision, found.recall, found.f1, found.in_order, found.exact
    (0.6666666666666666, 1.0, 0.8, True, False)
    """
    weights_PR = np.zeros((len(calls_P), len(expected_R)))
    columns_of = defaultdict(list)
    for column, expected in enumerate(expected_R):
        columns_of[expected.name].append(column)
    for row, call in enumerate(calls_P):
        for column in columns_of.get(call.name, ()):
            weights_PR[row, column] = compare_calls(expected_R[column], call, arguments)
    pairs = assign_calls(weights_PR, [call.name for call in calls_P], [e.name for e in expected_R])
    weight = float(sum(weights_PR[i, j] for i, j in pairs))
    whole_PR = weights_PR >= 1.0
    num_whole = sum(bool(whole_PR[i, j]) for i, j in pairs)
    if ((weights_PR > 0.0) & ~whole_PR).any():  # the best weight may not have most whole pairs
        num_whole = len(
            assign_calls(
                whole_PR.astype(np.float64),
                [call.name for call in calls_P],
                [e.name for e in expected_R],
            )
        )
    num_calls, num_expected = weights_PR.shape
    all_expected, all_calls = num_whole == num_expected, num_whole == num_calls
    return CallMatch(
        num_calls=num_calls,
        num_expected=num_expected,
        pairs=tuple(pairs),
        weight=weight,
        lcs=find_lcs(weights_PR),
        exact=num_calls == num_expected and bool(np.diagonal(whole_PR).all()),
        in_order=_is_subsequence(whole_PR),
        any_order=all_expected,
        unordered=all_expected and all_calls,
        subset=all_calls,
    )


def assign_calls(
    weights_PR: np.ndarray, names_P: Sequence[str], names_R: Sequence[str]
) -> list[tuple[int, int]]:
    """Weights -> pairs of the greatest total weight, each call and expected call at most once.

    Calls of different names never pair, so each name is a problem of its own. Where weights are
    only 0 and 1, of several best pairings the one with the earliest calls is taken.
    """
    rows_of, columns_of = defaultdict(list), defaultdict(list)
    for row, name in enumerate(names_P):
        rows_of[name].append(row)
    for column, name in enumerate(names_R):
        columns_of[name].append(column)
    pairs = []
    for name in rows_of.keys() & columns_of.keys():
        rows, columns = rows_of[name], columns_of[name]
        block = weights_PR[np.ix_(rows, columns)]
        ranked = block
        if np.isin(block, (0.0, 1.0)).all():
            # ranks sum to less than 1 over any pairing, so they decide only between equal ones
            ranks = (np.arange(len(rows), 0, -1) / (len(rows) + 1.0) ** 2)[:, None]
            later = np.arange(len(columns), 0, -1)[None] / (len(columns) + 1.0) ** 2
            ranked = np.where(block > 0, 2.0 * block + ranks + later * 1e-6, 0.0)
        for i, j in zip(*linear_sum_assignment(ranked, maximize=True), strict=True):
            if block[i, j] > 0.0:
                pairs.append((rows[i], columns[j]))
    return sorted(pairs)


def find_lcs(weights_PR: np.ndarray) -> float:
    """Greatest weight of pairs that keep the order of both sides."""
    best = [0.0] * (weights_PR.shape[1] + 1)
    for row in weights_PR.tolist():
        above = best
        best = [0.0]
        for j, weight in enumerate(row):
            best.append(max(above[j + 1], best[j], above[j] + weight))
    return best[-1]


def _is_subsequence(whole_PR: np.ndarray) -> bool:
    """Whether every column is met in order by some row; the earliest row is always right to take."""
    column = 0
    for row in whole_PR:
        if column < len(row) and row[column]:
            column += 1
    return column == whole_PR.shape[1]
