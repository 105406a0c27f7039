"""Losses against verl 0.9.1's, on random batches: values and gradients to 1e-10."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from loss_cases import (
    NUM_CASES,
    assert_equal,
    compare,
    compare_token_loss,
    differentiate,
    make_batch,
)
from verl.trainer.ppo import core_algos as verl
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config.actor import PolicyLossConfig
from verl_losses import ACTOR, MODES, choose_options, coefficients_as_verl, configure, in_verl

from starpo_train.losses.awr import compute_awr_loss
from starpo_train.losses.cispo import compute_cispo_loss
from starpo_train.losses.correction import correct_ratios
from starpo_train.losses.decoupled import compute_decoupled_loss
from starpo_train.losses.dppo_tv import compute_dppo_tv_loss
from starpo_train.losses.dro import compute_dro_loss, compute_dro_token_loss
from starpo_train.losses.gspo import compute_gspo_loss
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.sapo import compute_sapo_loss
from starpo_train.losses.topr import compute_topr_loss


def test_every_token_loss(write_golden):
    """PPO with and without dual clip, CISPO, SAPO, DPPO-TV and token DRO in verl's five modes."""
    cases = []
    for seed, mode in zip(range(NUM_CASES), cycle(MODES), strict=False):
        batch = make_batch(seed)
        coefficients_A = coefficients_as_verl(batch, mode)
        clips = choose_options(batch)
        cap, beta = batch.uniform(1.1, 5.0), batch.uniform(0.01, 2.0)
        temperatures = {
            "tau_positive": batch.uniform(0.5, 2),
            "tau_negative": batch.uniform(0.5, 2),
        }
        taus = {"tau_pos": temperatures["tau_positive"], "tau_neg": temperatures["tau_negative"]}
        limits = {"limit_low": clips["clip_low"], "limit_high": clips["clip_high"]}
        dro = PolicyLossConfig(loss_mode="dro", dro_beta=beta)
        for name, ours, config, options in (
            ("vanilla", compute_ppo_clip_loss, {"clip_ratio_c": cap}, clips | {"dual_clip": cap}),
            ("cispo", compute_cispo_loss, {}, clips),
            ("dppo_tv", compute_dppo_tv_loss, {"clip_ratio_c": cap}, limits | {"ratio_cap": cap}),
            ("sapo", compute_sapo_loss, taus, temperatures),
            ("dro", compute_dro_token_loss, {"policy_loss": dro}, {"beta": beta}),
        ):
            always = "seq-mean-token-mean" if name == "sapo" else mode  # whatever it is told
            factors_A = coefficients_as_verl(batch, always) if name == "sapo" else coefficients_A
            oracle = in_verl(batch, mode, name, configure(clips, **config))
            cases.append(compare_token_loss(name, ours, oracle, batch, factors_A, options))
        oracle = in_verl(batch, mode, "vanilla", configure(clips, clip_ratio_c=1e12))
        compare_token_loss("vanilla", compute_ppo_clip_loss, oracle, batch, coefficients_A, clips)
    write_golden("losses_verl", "verl", "0.9.1", cases)


def test_dual_clip_is_always_on_in_verl():
    """A = -1, rho = e^2: verl's term is 3 without being asked to; ours is 7.389 until told 3."""
    batch = replace_all(make_batch(1, spread=0.1), logprob=-1.0, behaviour=-3.0, advantage=-1.0)
    loss = in_verl(batch, "token-mean", "vanilla", ACTOR)(batch.logprobs_BT)
    given = (*map(batch.flatten, (batch.logprobs_BT, batch.behaviour_BT, batch.advantages_BT)),)
    factors_A = batch.coefficients("token-mean")
    assert loss.item() == pytest.approx(3.0)
    assert compute_ppo_clip_loss(*given, factors_A).loss.item() == pytest.approx(7.389056)
    assert compute_ppo_clip_loss(*given, factors_A, dual_clip=3.0).loss.item() == pytest.approx(3.0)


def test_dppo_cap_is_three_in_verl():
    """rho = e^2 with pi - mu < .2, A = 1: verl's weight is 3, as its actor's dual clip is; ours 7.39."""
    batch = replace_all(make_batch(1, spread=0.1), logprob=-3.0, behaviour=-5.0, advantage=1.0)
    loss = in_verl(batch, "token-mean", "dppo_tv", ACTOR)(batch.logprobs_BT)
    given = (*map(batch.flatten, (batch.logprobs_BT, batch.behaviour_BT, batch.advantages_BT)),)
    factors_A = batch.coefficients("token-mean")
    assert loss.item() == pytest.approx(3.0 * 3.0)
    assert compute_dppo_tv_loss(*given, factors_A).loss.item() == pytest.approx(7.389056 * 3.0)


def replace_all(batch, *, logprob, behaviour, advantage):
    return replace(
        batch,
        logprobs_BT=torch.full_like(batch.logprobs_BT, logprob),
        behaviour_BT=torch.full_like(batch.logprobs_BT, behaviour),
        advantages_BT=torch.full_like(batch.logprobs_BT, advantage),
        mask_BT=torch.ones_like(batch.mask_BT),
    )


def test_gspo(write_golden):
    """Values for any advantages, gradients where a row has one advantage."""
    cases = []
    for seed, mode in zip(range(NUM_CASES), cycle(MODES), strict=False):
        batch = make_batch(seed)
        options = choose_options(batch)
        oracle = in_verl(batch, mode, "gspo", configure(options))
        ours = compute_gspo_loss(*list_for_gspo(batch, mode).values(), **options).loss
        assert_equal(ours, oracle(batch.logprobs_BT))
        batch = make_batch(seed, rows_alike=True)
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        theirs = in_verl(batch, mode, "gspo", configure(options))(leaf_BT)
        gradient_N = differentiate(theirs, leaf_BT).sum(1)  # at the mean of a row's tokens
        inputs = list_for_gspo(batch, mode)
        cases.append(compare("gspo", compute_gspo_loss, inputs, options, (theirs, gradient_N)))
    write_golden("gspo_verl", "verl", "0.9.1", cases)


def list_for_gspo(batch, mode):
    return {
        "log_ratio_means_N": batch.means(batch.logprobs_BT - batch.behaviour_BT),
        "advantages_A": batch.flatten(batch.advantages_BT),
        "trajectory_of_A": batch.row_of,
        "coefficients_A": coefficients_as_verl(batch, mode),
    }


def test_gspo_gradients_differ_where_advantages_do():
    """Two tokens, rho = 1, A = (1, 0), token-mean: ours (-.25, -.25), verl's (-.5, 0)."""
    ones_BT = torch.ones(1, 2, dtype=torch.float64)
    batch = replace(
        make_batch(1),
        logprobs_BT=(-ones_BT).requires_grad_(),
        behaviour_BT=-ones_BT,
        advantages_BT=torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        mask_BT=ones_BT,
    )
    ours = compute_gspo_loss(*list_for_gspo(batch, "token-mean").values()).loss
    theirs = in_verl(batch, "token-mean", "gspo", ACTOR)(batch.logprobs_BT)
    assert_equal(differentiate(ours, batch.logprobs_BT), [[-0.25, -0.25]])
    assert_equal(differentiate(theirs, batch.logprobs_BT), [[-0.5, 0.0]])


def test_decoupled(write_golden):
    """verl's clipped loss against the proximal policy times its rollout correction, TIS and mask."""
    cases = []
    for seed, mode in zip(range(NUM_CASES), cycle(MODES), strict=False):
        batch = make_batch(seed)
        noise_BT = torch.randn(batch.logprobs_BT.shape, generator=batch.generator).double()
        proximal_BT = batch.logprobs_BT + 0.3 * noise_BT
        options = {"cap": batch.uniform(1.1, 5.0), "masked": bool(seed % 2)}
        log_ratio_BT = proximal_BT - batch.behaviour_BT
        if not correct_ratios(batch.flatten(log_ratio_BT), **options).any():
            continue  # verl's metrics divide by zero
        threshold = f"1e-9_{options['cap']}" if options["masked"] else options["cap"]
        weights_BT, _ = compute_rollout_correction_weights(
            log_ratio_BT, batch.mask_BT, "token", threshold
        )
        near = replace(batch, behaviour_BT=proximal_BT)
        clips = choose_options(batch)
        config = configure(clips, clip_ratio_c=1e12)
        oracle = in_verl(near, mode, "vanilla", config, rollout_is_weights=weights_BT)
        options |= clips | {"proximal_logprobs_A": batch.flatten(proximal_BT)}
        factors_A = coefficients_as_verl(batch, mode)
        cases.append(
            compare_token_loss("vanilla", compute_decoupled_loss, oracle, batch, factors_A, options)
        )
    assert len(cases) > 0.9 * NUM_CASES
    write_golden("decoupled_verl", "verl", "0.9.1", cases)


def test_awr_is_a_policy_gradient_with_constant_weights(write_golden):
    """verl's REINFORCE with exp(A / beta), at most 20, in the advantages' place."""
    cases = []
    for seed, mode in zip(range(NUM_CASES), cycle(MODES), strict=False):
        batch = make_batch(seed)
        beta = batch.uniform(0.1, 2.0)
        weights_BT = torch.exp(batch.advantages_BT / beta).clamp(max=20.0)
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        theirs, _ = verl.compute_policy_loss_reinforce(
            batch.behaviour_BT, leaf_BT, weights_BT, batch.mask_BT, mode, ACTOR
        )
        gradient_A = batch.flatten(differentiate(theirs, leaf_BT))
        inputs = {
            "logprobs_A": batch.flatten(batch.logprobs_BT),
            "advantages_A": batch.flatten(batch.advantages_BT),
            "coefficients_A": coefficients_as_verl(batch, mode),
        }
        name = "compute_policy_loss_reinforce"
        oracle = (theirs, gradient_A)
        cases.append(compare(name, compute_awr_loss, inputs, {"beta": beta}, oracle))
    write_golden("awr_verl", "verl", "0.9.1", cases)


def compute_topr_in_verl(batch, leaf_BT, outcomes_B):
    """REINFORCE on whole rows; where the outcome is bad, times the row's ratio, at most 1."""
    log_ratio_BT = (leaf_BT - batch.behaviour_BT).detach()
    weights_BT, _ = compute_rollout_correction_weights(log_ratio_BT, batch.mask_BT, "sequence", 1.0)
    weights_BT = torch.where(outcomes_B[:, None] >= 0, torch.ones_like(weights_BT), weights_BT)
    loss, _ = verl.compute_policy_loss_reinforce(
        batch.behaviour_BT,
        leaf_BT,
        outcomes_B[:, None].expand_as(leaf_BT),
        batch.mask_BT,
        "seq-mean-token-sum",
        ACTOR,
        weights_BT,
    )
    return loss


def test_topr(write_golden):
    """verl's REINFORCE with truncated sequence ratios on the bad rows alone."""
    cases = []
    for seed in range(NUM_CASES):
        batch = make_batch(seed, spread=1.0, rows_alike=True, empty_rows=False)
        outcomes_N = batch.advantages_BT[:, 0]
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        theirs = compute_topr_in_verl(batch, leaf_BT, outcomes_N)
        gradient_N = differentiate(theirs, leaf_BT).gather(1, batch.mask_BT.argmax(1)[:, None])[
            :, 0
        ]
        inputs = {
            "logprobs_N": (batch.logprobs_BT * batch.mask_BT).sum(1),
            "behaviour_logprobs_N": (batch.behaviour_BT * batch.mask_BT).sum(1),
            "outcomes_N": outcomes_N,
        }
        name = "compute_policy_loss_reinforce"
        cases.append(compare(name, compute_topr_loss, inputs, {}, (theirs, gradient_N)))
    write_golden("topr_verl", "verl", "0.9.1", cases)


def test_topr_has_no_floor():
    """log pi - log mu = -100, R = -1: ours fades to 3.7e-44, verl's limit of -20 keeps 2.1e-9."""
    far = torch.tensor([-101.0], dtype=torch.float64, requires_grad=True)
    ours = compute_topr_loss(far, torch.tensor([-1.0]).double(), torch.tensor([-1.0]).double())
    weights, _ = compute_rollout_correction_weights(
        torch.tensor([[-100.0]]).double(), torch.ones(1, 1).double(), "sequence", 1.0
    )
    assert differentiate(ours.loss, far).item() == pytest.approx(3.72e-44, rel=1e-2, abs=0)
    assert weights.item() == pytest.approx(2.06e-9, rel=1e-2)


def test_the_two_forms_of_dro():
    """They agree, up to constants and 1 / tau, on one token and differ on two.

    One token, h = .5, A = 1, tau = beta = .8: gradients -(1 - .4) and -.8 (1 - .4).
    Two tokens of h = .5 each: -(1 - .4) per token in verl, -.8 (1 - .8) in the paper's form.
    """
    for count, slope in ((1, -0.8 * (1 - 0.4)), (2, -0.8 * (1 - 0.8))):
        ones = torch.ones(1, count, dtype=torch.float64)
        leaf_BT = (-ones).clone().requires_grad_()
        config = replace(ACTOR, policy_loss=PolicyLossConfig(loss_mode="dro", dro_beta=0.8))
        token_loss, _ = verl.compute_policy_loss_dro(
            -1.5 * ones, leaf_BT, ones, ones, "token-sum", config
        )
        assert_equal(differentiate(token_loss, leaf_BT), -(1 - 0.4) * ones)
        whole = compute_dro_loss(leaf_BT.sum(1), -1.5 * ones.sum(1), ones[:, 0], tau=0.8)
        assert_equal(differentiate(whole.loss, leaf_BT), slope * ones)
