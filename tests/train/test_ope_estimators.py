"""Off-policy estimators against numbers worked out by hand and against plain arithmetic."""

import math

import pytest
import torch

from starpo_train.ope.dr import build_dr_terms, compute_dr_values
from starpo_train.ope.ess import compute_ess_per_turn, describe_weights
from starpo_train.ope.importance import (
    accumulate_log_ratios,
    build_is_terms,
    build_pdis_terms,
    build_sn_pdis_terms,
    build_weight_terms,
    build_wis_terms,
    compute_returns,
)

BUILDERS = (build_is_terms, build_wis_terms, build_pdis_terms, build_sn_pdis_terms)


def to_tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def make_case(generator, *, num_trajectories=30, num_turns=6, spread=0.5):
    lengths = torch.randint(1, num_turns + 1, (num_trajectories,), generator=generator)
    mask_NK = torch.arange(num_turns)[None] < lengths[:, None]
    draw = (num_trajectories, num_turns)
    log_ratios_NK = spread * torch.randn(draw, generator=generator, dtype=torch.float64)
    rewards_NK = torch.randn(draw, generator=generator, dtype=torch.float64)
    return log_ratios_NK, rewards_NK, mask_NK


def test_two_trajectories_by_hand():
    """Ratios (2, 3) and (1/2), rewards (1, 1) and (4), gamma 1/2."""
    log_ratios_NK = to_tensor([[2, 3], [0.5, 1]]).log()
    rewards_NK = to_tensor([[1, 1], [4, 0]])
    mask_NK = torch.tensor([[True, True], [True, False]])
    values = [
        build(log_ratios_NK, rewards_NK, mask_NK, gamma=0.5).compute_value() for build in BUILDERS
    ]
    # returns 1.5 and 4, weights 6 and 1/2; P_1 = (2, 1/2), P_2 = (6, 1/2)
    by_hand = [(6 * 1.5 + 2) / 2, (9 + 2) / 6.5, (2 + 3 + 2) / 2, (2 + 2) / 2.5 + 0.5 * 6 / 6.5]
    assert values == pytest.approx(by_hand, abs=1e-12)


def test_equal_policies_give_the_mean_to_the_last_bit():
    """With every ratio 1 each estimator is the mean of what was recorded, not nearly so."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        _, rewards_NK, mask_NK = make_case(generator, num_trajectories=7 + seed)
        returns_N = compute_returns(rewards_NK, mask_NK, gamma=0.9)
        mean = math.fsum(returns_N.tolist()) / len(returns_N)
        nothing_NK = torch.zeros_like(rewards_NK)
        values = {
            build(nothing_NK, rewards_NK, mask_NK, gamma=0.9).compute_value() for build in BUILDERS
        }
        assert values == {mean}


def test_against_plain_products():
    """Log space gives what products of ratios give, where those can be had."""
    log_ratios_NK, rewards_NK, mask_NK = make_case(torch.Generator().manual_seed(3))
    ratios_NK = torch.where(mask_NK, log_ratios_NK.exp(), 1.0)
    products_NK = ratios_NK.cumprod(1)
    discount_K = 0.8 ** torch.arange(6, dtype=torch.float64)
    earned_NK = rewards_NK * mask_NK * discount_K
    whole_N = products_NK[:, -1]
    expected = [
        (whole_N * earned_NK.sum(1)).mean(),
        (whole_N * earned_NK.sum(1)).sum() / whole_N.sum(),
        (products_NK * earned_NK).sum(1).mean(),
        ((products_NK * earned_NK).sum(0) / products_NK.sum(0)).sum(),
    ]
    values = [
        build(log_ratios_NK, rewards_NK, mask_NK, gamma=0.8).compute_value() for build in BUILDERS
    ]
    assert values == pytest.approx([float(value) for value in expected], abs=1e-12)


@pytest.mark.parametrize("shift", [3000.0, -3000.0])
def test_extreme_ratios_stay_finite(shift: float):
    """A product of e^3000 or e^-3000 overflows no estimate, and the normalised ones ignore it."""
    log_ratios_NK, rewards_NK, mask_NK = make_case(torch.Generator().manual_seed(5))
    moved_NK = log_ratios_NK.clone()
    moved_NK[:, 0] += shift
    for build in BUILDERS:
        assert math.isfinite(build(moved_NK, rewards_NK, mask_NK).compute_value())
    for build in (build_wis_terms, build_sn_pdis_terms):
        before = build(log_ratios_NK, rewards_NK, mask_NK).compute_value()
        assert build(moved_NK, rewards_NK, mask_NK).compute_value() == pytest.approx(before)
    fitted = {"q_values_NK": rewards_NK, "values_NK": rewards_NK}
    assert math.isfinite(build_dr_terms(moved_NK, rewards_NK, mask_NK, **fitted).compute_value())


def test_an_ended_trajectory_keeps_its_weight():
    """Whatever stands in its padding."""
    log_ratios_NK = to_tensor([[0.5, 9, math.nan], [1, 2, 3]])
    mask_NK = torch.tensor([[True, False, False], [True, True, True]])
    found = accumulate_log_ratios(log_ratios_NK, mask_NK)
    assert found.tolist() == [[0.5, 0.5, 0.5], [1, 3, 6]]


def test_a_turn_that_the_policy_never_takes():
    """Its trajectory weighs nothing; where all do, the normalised estimates have no answer."""
    rewards_NK, mask_NK = to_tensor([[1], [3]]), torch.ones(2, 1, dtype=torch.bool)
    one_gone = to_tensor([[-math.inf], [0]])
    assert [build(one_gone, rewards_NK, mask_NK).compute_value() for build in BUILDERS] == [
        1.5,
        3.0,
        1.5,
        3.0,
    ]
    all_gone = to_tensor([[-math.inf], [-math.inf]])
    assert math.isnan(build_wis_terms(all_gone, rewards_NK, mask_NK).compute_value())
    assert build_is_terms(all_gone, rewards_NK, mask_NK).compute_value() == 0.0
    assert describe_weights(all_gone[:, 0]).ess == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_ratio_that_is_none_is_named(wrong: float):
    """With its trajectory and turn."""
    log_ratios_NK = to_tensor([[0, 0], [0, wrong]])
    with pytest.raises(ValueError, match=r"log ratio (nan|inf) at trajectory 1, turn 1"):
        accumulate_log_ratios(log_ratios_NK, torch.ones(2, 2, dtype=torch.bool))


def test_a_gap_is_refused():
    """Turns come before padding."""
    with pytest.raises(ValueError, match="gap"):
        accumulate_log_ratios(torch.zeros(1, 2), torch.tensor([[False, True]]))


def test_dr_by_hand():
    """One turn, ratio 2, reward 1, Q 1/2, V .4: .4 + 2 (1 - .5) = 1.4."""
    terms = build_dr_terms(
        to_tensor([[math.log(2)]]),
        to_tensor([[1]]),
        torch.tensor([[True]]),
        q_values_NK=to_tensor([[0.5]]),
        values_NK=to_tensor([[0.4]]),
    )
    assert terms.compute_value() == pytest.approx(1.4, abs=1e-15)


@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_dr_is_its_recursion(spread: float):
    """Unrolled in log space it is v_k = V + rho (r + gamma v_{k+1} - Q), for any Q and V."""
    generator = torch.Generator().manual_seed(7)
    log_ratios_NK, rewards_NK, mask_NK = make_case(generator, spread=spread)
    q_values_NK = torch.randn(rewards_NK.shape, generator=generator, dtype=torch.float64)
    values_NK = torch.randn(rewards_NK.shape, generator=generator, dtype=torch.float64)
    given = {"q_values_NK": q_values_NK, "values_NK": values_NK, "gamma": 0.9}
    recursed_N = compute_dr_values(log_ratios_NK, rewards_NK, mask_NK, **given)
    terms = build_dr_terms(log_ratios_NK, rewards_NK, mask_NK, **given)
    found_N = terms.numerators_NF[:, 0] * terms.scale
    assert found_N.tolist() == pytest.approx(recursed_N.tolist(), rel=1e-9, abs=1e-9)


def test_dr_without_a_model_is_pdis():
    """Q = V = 0 leaves per-decision importance sampling."""
    log_ratios_NK, rewards_NK, mask_NK = make_case(torch.Generator().manual_seed(8))
    zeros_NK = torch.zeros_like(rewards_NK)
    terms = build_dr_terms(
        log_ratios_NK, rewards_NK, mask_NK, q_values_NK=zeros_NK, values_NK=zeros_NK
    )
    pdis = build_pdis_terms(log_ratios_NK, rewards_NK, mask_NK)
    assert terms.compute_value() == pytest.approx(pdis.compute_value(), abs=1e-12)


def test_ess_by_hand():
    """Weights (3, 1): 16 / 10, and 3/4 of the weight; per turn with ended ones as they ended."""
    facts = describe_weights(to_tensor([3, 1]).log())
    assert (facts.ess, facts.largest_share) == pytest.approx((1.6, 0.75))
    log_weights_NK = to_tensor([[1, 3], [1, 1]]).log()
    assert compute_ess_per_turn(log_weights_NK).tolist() == pytest.approx([2.0, 1.6])


def test_the_weights_mean():
    """Ratios (2, 1/2): 1.25."""
    log_ratios_NK = to_tensor([[2], [0.5]]).log()
    terms = build_weight_terms(log_ratios_NK, torch.ones(2, 1, dtype=torch.bool))
    assert terms.compute_value() == pytest.approx(1.25)
