"""Records of made-up cells -> intervals, what is said of `auto`, and files that are read again."""

import json

import pytest
from learn.cells import BEHAVIOUR
from learn.decide import rank_ope, summarize
from learn.records import find_key, read_records, write_records
from learn.table import Place, compare, estimate, find_cell, is_run
from learn.targets import list_quick_targets, list_targets
from learn.temperature import average
from learn.temperature import list_targets as list_temperature_targets

SEEDS = (0, 1, 2)


def make_records(by_method, *, data="exact", shifted=0.0):
    """Method -> success by seed, as records of FrozenLake."""
    return [
        {
            "environment": "frozen_lake",
            "data": data,
            "method": method,
            "seed": seed,
            "settings": "x",
            "cpu_s": 1.0,
        }
        | ({"refused": value} if isinstance(value, str) else {"test": value, "shifted": shifted})
        for method, values in by_method.items()
        for seed, value in zip(SEEDS, values, strict=True)
    ]


def make_place(records, *conditions):
    found = {find_key(record): record for record in records}
    return Place(found, "frozen_lake", conditions, SEEDS)


def test_interval_of_three_seeds_by_hand():
    """Mean .5, deviation .1, t(2) = 4.303: half a width of 4.303 x .1 / sqrt 3 = .2484."""
    found = estimate([0.4, 0.5, 0.6])
    assert (found.mean, found.half_width) == (pytest.approx(0.5), pytest.approx(0.2484, abs=1e-4))


def test_the_deviation_of_differences_is_pooled_over_conditions():
    """Variances .01 and .03 of three seeds each: .02 with 4 degrees, t = 2.776."""
    family = [[0.0, 0.1, 0.2], [0.0, 0.03**0.5, 2 * 0.03**0.5]]
    found = compare([0.5, 0.6, 0.7], [0.5, 0.5, 0.5], family)
    assert found.mean == pytest.approx(0.1)
    assert found.half_width == pytest.approx(2.7764 * 0.02**0.5 / 3**0.5, rel=1e-4)
    assert compare([0.5], [0.4], [[0.1]]).high == float("inf")


def test_auto_beside_the_best_cloning_and_the_recorded_policy():
    """Better than cloning by .1 in every seed, and the best there is but for one."""
    records = make_records(
        {
            BEHAVIOUR: [0.3, 0.3, 0.31],
            "auto": [0.6, 0.61, 0.6],
            "topr": [0.61, 0.61, 0.61],
            "filtered_bc": [0.5, 0.5, 0.51],
            "kto": ["why", "why", 0.9],
        }
    )
    place = make_place(records, "exact", "shift")
    (judged, shifted) = place.judge_auto()
    assert (judged["best"], judged["better_than_filtered_bc"]) == ("topr", True)
    assert judged["worse_than_behaviour"] is False
    assert judged["over_filtered_bc"]["mean"] == pytest.approx(0.1, abs=1e-3)
    # .3, .31 and .29 in one condition, 0 in the other: variance .00005 with 4 degrees
    half = pytest.approx(2.7764 * 0.00005**0.5 / 3**0.5, abs=1e-4)
    assert (shifted["over_behaviour"]["mean"], shifted["over_behaviour"]["high"]) == (0.0, half)
    rows = {(row["condition"], row["method"]): row for row in place.list_rows()}
    assert rows["exact", "kto"]["in_seeds"] == 2
    assert rows["exact", "kto"]["result"] == "refused"
    assert "over_behaviour" not in rows["exact", BEHAVIOUR]


def test_a_method_that_a_seed_lacks_is_left_out():
    """Half a row would compare different seeds."""
    records = make_records({BEHAVIOUR: [0.3] * 3, "filtered_bc": [0.5] * 3})[:-1]
    assert list(make_place(records, "exact").found["exact"]) == [BEHAVIOUR]


def test_where_a_place_takes_its_cell_from():
    """`shift` is trained on `exact`; TRL reads no log-probabilities."""
    assert find_cell("shop", "shift", "awr", 3).data == "exact"
    assert find_cell("shop", "closed", "awr", 3).data == "closed"
    assert find_cell("shop", "closed", "trl_kto", 3).data == "exact"
    assert find_cell("shop", "late", BEHAVIOUR, 3).data == "exact"
    assert not is_run("late", "trl_sft")


def test_verdicts_are_counted_by_truth():
    """Of two that are worse one is promoted; of two that are better one is undecided."""
    judged = [
        ("worse", "PROMOTE"),
        ("worse", "BLOCK"),
        ("better", "PROMOTE"),
        ("better", "INCONCLUSIVE"),
    ]
    records = [
        {"judged": [{"split": "test", "truth": 0.1, "truly": truly, "verdict": verdict}]}
        for truly, verdict in judged
    ]
    found = summarize(records)
    assert (found["promoted_of_worse"], found["blocked_of_better"]) == (0.5, 0.0)
    assert (found["decided_of_different"], found["inconclusive"]) == (0.75, 0.25)
    targets = {t["name"]: t["met"] for t in list_targets(
        {"auto": [], "rows": [], "gate": found}, unseen=())}  # fmt: skip
    assert targets["truly worse candidates promoted"] is False
    assert targets["truly better candidates blocked"] is True


def test_ranks_are_compared_within_a_seed():
    """Perfect in each of two seeds, though the harder one's values are all lower."""
    records = [
        {
            "environment": "shop",
            "seed": seed,
            "ope": {"verdict": "inconclusive", "value": level + gain, "behaviour": level},
            "judged": [{"split": "test", "truth": gain - seed}],
        }
        for seed, level in ((0, 0.5), (1, 0.1))
        for gain in (0.0, 0.1, 0.2)
    ]
    found = rank_ope(records)
    assert found["all with an estimate"] == {"candidates": 6, "groups": 2, "spearman": 1.0}
    assert found["answered"]["spearman"] is None


def test_records_are_read_as_written(tmp_path):
    """One line each, sorted; the later of two of one cell."""
    first = make_records({"awr": [0.1, 0.2, 0.3], "auto": [0.4, 0.5, 0.6]})
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    write_records(path, [*first, first[0] | {"test": 0.9}])
    again = read_records(path)
    assert [find_key(r)[2:] for r in again] == [
        ("auto", 0), ("auto", 1), ("auto", 2), ("awr", 0), ("awr", 1), ("awr", 2),
    ]  # fmt: skip
    assert again[3]["test"] == 0.9
    assert len(path.read_text().splitlines()) == len({json.dumps(r) for r in again}) == 6


def test_a_quick_run_fails_where_something_failed_or_did_harm():
    """Two seeds decide nothing finer."""
    good = {"worse_than_behaviour": False}
    figures = {"auto": [good] * 4, "rows": [{"success": {}}]}
    assert all(target["met"] for target in list_quick_targets(figures))
    for spoilt in (
        {"auto": [good] * 3 + [{"worse_than_behaviour": True}]},
        {"auto": [good] * 3},
        {"rows": [{"result": "failed"}]},
    ):
        assert not all(target["met"] for target in list_quick_targets(figures | spoilt))


def test_policies_are_compared_at_their_best_temperature():
    """Recorded .5 and .7 on average, `auto` .6 and .6: ahead at 1, behind at its best."""
    means = average(
        {
            "frozen_lake": {
                BEHAVIOUR: {0: [0.4, 0.6], 1: [0.6, 0.8]},
                "filtered_bc": {0: [0.5, 0.5], 1: [0.5, 0.5]},
                "auto": {0: [0.6, 0.5], 1: [0.6, 0.7]},
            }
        }
    )
    assert means["frozen_lake"]["auto"] == pytest.approx([0.6, 0.6])
    recorded, cloned = list_temperature_targets(means)
    assert (recorded["value"], recorded["met"]) == (0, False)
    assert (cloned["value"], cloned["met"]) == (1, True)
