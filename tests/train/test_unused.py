"""Settings that change nothing are named."""

from dataclasses import fields, replace

import pytest

from starpo_train.config import AlgorithmSection
from starpo_train.metrics import read_metrics
from starpo_train.run import train
from starpo_train.unused import _USES, list_unused


@pytest.mark.parametrize(
    ("algorithm", "options", "unused"),
    [
        ("dpo", {"loss": "gspo", "beta": 0.2, "pairs_per_task": 2}, ["loss"]),
        ("starpo", {"baseline": "critic", "beta": 0.1}, ["baseline", "beta"]),
        ("awr", {"kl_coef": 0.1, "advantage": "rloo"}, ["advantage", "kl_coef"]),
        ("starpo", {"correction": "mask"}, ["correction"]),
        ("starpo", {"correction": "mask", "proximal": "epoch"}, []),
        ("starpo", {"loss": "sapo", "dual_clip": 3.0, "clip_low": 0.1}, ["clip_low", "dual_clip"]),
        ("starpo", {"advantage": "bilevel_gae", "lambda_": 0.9}, []),
        ("starpo", {"lambda_": 0.9}, ["lambda"]),
        ("filtered_bc", {"reward_threshold": 0.7}, []),
        ("topr", {"aggregation": "token-mean"}, ["aggregation"]),
    ],
)
def test_what_an_algorithm_does_not_take_is_listed(algorithm, options, unused):
    """Only what differs from its default, in the order of the section."""
    assert list_unused(algorithm, replace(AlgorithmSection(), **options)) == unused


def test_limits_of_drift_need_something_to_compare_with():
    """Without any log-probabilities the ceiling is never reached."""
    section = AlgorithmSection(kl_ceiling=0.1)
    assert list_unused("awr", section) == []
    assert list_unused("awr", section, is_compared=False) == ["kl_ceiling"]


def test_every_rule_is_of_a_setting():
    """A setting that was renamed would have a rule that never applies."""
    assert set(_USES) <= {option.name for option in fields(AlgorithmSection)}


def test_a_run_says_what_it_ignores(configure):
    """In its first record."""
    result = train(configure(algorithm={"name": "dpo", "clip_low": 0.1}))
    assert read_metrics(result.metrics_path)[0]["unused_settings"] == ["algorithm.clip_low"]
