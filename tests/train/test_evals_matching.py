"""Matching calls with expected ones, against every possible pairing."""

import random
from itertools import combinations, permutations

import pytest

from starpo_train.evals import ToolCall, match_calls
from starpo_train.evals.metrics import find_cycle


def call(name, **arguments):
    return ToolCall(name=name, arguments=arguments)


def best_weight(weights, *, in_order):
    """Greatest weight over every pairing, by trying them all."""
    num_rows, num_columns = len(weights), len(weights[0]) if weights else 0
    best = 0.0
    for size in range(1, min(num_rows, num_columns) + 1):
        for rows in combinations(range(num_rows), size):
            for columns in permutations(range(num_columns), size):
                if not in_order or list(columns) == sorted(columns):
                    best = max(best, sum(weights[i][j] for i, j in zip(rows, columns, strict=True)))
    return best


def overlap(expected, actual):
    """Share of the expected arguments that are there."""
    return sum(actual.get(name) == value for name, value in expected.items()) / len(expected)


@pytest.mark.parametrize("arguments", ["exact", "superset", "subset", "keys", "ignore", overlap])
def test_weights_are_those_of_the_best_pairing(arguments):
    """200 random runs of up to five calls; the weights of single pairs come from one-call runs."""
    generator = random.Random(0)

    def draw():
        names = generator.sample("xyz", generator.randint(1, 3))
        return call(generator.choice("ab"), **{name: generator.randint(0, 1) for name in names})

    for _ in range(200):
        calls = [draw() for _ in range(generator.randint(1, 5))]
        expected = [draw() for _ in range(generator.randint(1, 4))]
        weights = [[match_calls([c], [e], arguments).weight for e in expected] for c in calls]
        found = match_calls(calls, expected, arguments)
        assert found.weight == pytest.approx(best_weight(weights, in_order=False))
        assert found.lcs == pytest.approx(best_weight(weights, in_order=True))
        assert sum(weights[i][j] for i, j in found.pairs) == pytest.approx(found.weight)
        whole = [[weight == 1.0 for weight in row] for row in weights]
        num_whole = best_weight(whole, in_order=False)
        assert found.any_order == (num_whole == len(expected))
        assert found.subset == (num_whole == len(calls))
        assert found.unordered == (found.any_order and found.subset)
        assert found.in_order == (best_weight(whole, in_order=True) == len(expected))
        same = len(calls) == len(expected)
        assert found.exact == (same and all(whole[i][i] for i in range(len(calls))))


def test_two_calls_that_swap_places_have_the_same_score():
    """Greedy pairing with `superset` gives the wide call to the narrow reference: 1 of 2."""
    expected = [call("book", seat=1), call("book", seat=1, meal=2)]
    wide, narrow = call("book", seat=1, meal=2), call("book", seat=1)
    for calls in ([wide, narrow], [narrow, wide]):
        found = match_calls(calls, expected, "superset")
        assert (found.any_order, found.weight, found.f1) == (True, 2.0, 1.0)


def test_duplicates_are_counted_and_lists_compared():
    """Ragas' sets collapse the first and cannot hold the second."""
    twice = [call("add", items=[1, 2])] * 2
    found = match_calls(twice[:1], twice)
    assert (found.precision, found.recall, found.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert match_calls(twice, [call("add", items=[2, 1])]).weight == 0.0


@pytest.mark.parametrize(
    ("mode", "fits"),
    [
        ("exact", [True, False, False, False]),
        ("subset", [True, False, True, False]),
        ("superset", [True, True, False, False]),
        ("keys", [True, False, False, True]),
        ("ignore", [True, True, True, True]),
    ],
)
def test_argument_modes(mode, fits):
    """The same arguments, one more, one fewer, another value."""
    expected = [call("f", a=1, b=2)]
    actual = [call("f", a=1, b=2), call("f", a=1, b=2, c=3), call("f", a=1), call("f", a=1, b=3)]
    assert [match_calls([each], expected, mode).any_order for each in actual] == fits


def test_partial_weights_do_not_hide_a_whole_match():
    """The greatest weight takes two halves (.9 + .9); one expected call is made wholly even so."""
    weights = {(0, 0): 1.0, (0, 1): 0.9, (1, 0): 0.9, (1, 1): 0.0}
    calls, expected = [[call("f", i=i) for i in range(2)] for _ in range(2)]
    found = match_calls(calls, expected, lambda e, a: weights[a["i"], e["i"]])
    assert (found.pairs, found.weight, found.subset) == (((0, 1), (1, 0)), 1.8, False)
    single = match_calls(calls, expected[:1], lambda e, a: weights[a["i"], e["i"]])
    assert (single.any_order, single.precision) == (True, 0.5)


def test_the_earliest_of_equal_calls_is_the_right_one():
    """So the later ones are those that step scores call wrong."""
    calls = [call("a"), call("b"), call("a"), call("a")]
    assert match_calls(calls, [call("a"), call("a")]).pairs == ((0, 0), (2, 1))


def test_no_calls_and_none_expected():
    """Shares of nothing are None."""
    found = match_calls([], [])
    assert (found.precision, found.recall, found.f1, found.lcs_score) == (None,) * 4
    lazy = match_calls([], [call("a")])
    assert (lazy.precision, lazy.recall, lazy.f1, lazy.any_order) == (None, 0.0, 0.0, False)


def test_cycles_at_the_end():
    """Three rounds are a cycle, two are none."""
    a, b, c = (call(name) for name in "abc")
    assert find_cycle([c, a, b, a, b]) is None
    assert find_cycle([c, a, b, a, b, a, b]) == 2
    assert find_cycle([a, a, a]) == 1
