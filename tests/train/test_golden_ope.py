"""Off-policy estimators against scope-rl's numbers, written down by `make oracles`."""

import pytest
import torch

from starpo_train.ope.dr import build_dr_terms
from starpo_train.ope.importance import (
    build_is_terms,
    build_pdis_terms,
    build_sn_pdis_terms,
    build_wis_terms,
)

PAIRS = {
    "TrajectoryWiseImportanceSampling": build_is_terms,
    "PerDecisionImportanceSampling": build_pdis_terms,
    "SelfNormalizedTIS": build_wis_terms,
    "SelfNormalizedPDIS": build_sn_pdis_terms,
    "DoublyRobust": build_dr_terms,
}


def test_the_same_values(read_golden):
    """60 logs; scope-rl adds 1e-10 to the mean weights of its self-normalised forms."""
    cases = read_golden("ope_scope_rl")
    assert len(cases) == 60
    for case in cases:
        inputs = dict(case["inputs"])
        gamma = inputs.pop("gamma")
        mask_NK = torch.tensor(inputs.pop("mask_NK"))
        arrays = {name: torch.tensor(value, dtype=torch.float64) for name, value in inputs.items()}
        terms = PAIRS[case["function"]](**arrays, mask_NK=mask_NK, gamma=gamma)
        tolerance = 1e-7 if case["function"].startswith("SelfNormalized") else 1e-10
        expected = case["outputs"]["value"]
        assert terms.compute_value() == pytest.approx(expected, rel=tolerance, abs=tolerance)
