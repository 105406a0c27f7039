"""Losses against numbers worked out by hand: the examples of their docstrings, and what they log."""

import math

import pytest
import torch

from starpo_train.losses.aggregation import compute_coefficients, compute_row_coefficients
from starpo_train.losses.awr import compute_awr_loss, compute_awr_weights
from starpo_train.losses.cispo import compute_cispo_loss, compute_cispo_trl_loss
from starpo_train.losses.correction import correct_ratios, mask_off_policy_sequences
from starpo_train.losses.decoupled import compute_decoupled_loss
from starpo_train.losses.dpo import compute_dpo_loss
from starpo_train.losses.dppo_tv import compute_dppo_tv_loss
from starpo_train.losses.dro import compute_dro_loss, compute_dro_token_loss
from starpo_train.losses.gspo import compute_gspo_loss
from starpo_train.losses.kl import compute_kl
from starpo_train.losses.kto import compute_kto_loss
from starpo_train.losses.overlong import compute_overlong_penalty
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.sapo import compute_sapo_loss
from starpo_train.losses.topr import compute_topr_loss
from starpo_train.losses.value import compute_value_loss

approx = pytest.approx


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def run(compute, first, *given, **options):
    """Loss, gradient at the first argument, figures or sums."""
    leaf = first.clone().requires_grad_()
    output = compute(leaf, *given, **options)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    assert not any(value.requires_grad for value in output.sums.values())
    sums = {name: value.item() for name, value in output.sums.items()}
    return output.loss.item(), gradient.tolist(), sums


def run_ratio(compute, ratio, advantage, *, behaviour=-1.0, **options):
    """One token of coefficient 1 whose ratio is given."""
    return run(
        compute, t(behaviour + math.log(ratio)), t(behaviour), t(advantage), t(1.0), **options
    )


def test_dual_clip():
    """A = -1, rho = 5, c = 3: 3 instead of 5, without gradient; at rho = 2 nothing changes."""
    loss, gradient, sums = run_ratio(compute_ppo_clip_loss, 5.0, -1.0, dual_clip=3.0)
    assert (loss, gradient, sums["dual_clipped"]) == (approx(3.0), [0.0], 1.0)
    loss, gradient, sums = run_ratio(compute_ppo_clip_loss, 2.0, -1.0, dual_clip=3.0)
    assert (loss, gradient, sums["dual_clipped"]) == (approx(2.0), [approx(2.0)], 0.0)
    with pytest.raises(ValueError, match="dual_clip = 1 "):
        run_ratio(compute_ppo_clip_loss, 2.0, -1.0, dual_clip=1.0)


def test_gspo():
    """Log-ratios 0 and ln 1.21: s = 1.1, loss -1.1; a second trajectory at s = 2 is clipped."""
    means_N = t(math.log(1.21) / 2, math.log(2.0))
    loss, gradient, figures = run(
        compute_gspo_loss, means_N, t(1, 1, 1), torch.tensor([0, 0, 1]), t(0.5, 0.5, 1.0)
    )
    assert loss == approx(-1.1 - 1.28)
    assert gradient == [approx(-1.1), 0.0]
    assert figures == {"clip_fraction": 0.5, "sequence_ratio": approx(1.55)}


def test_cispo_keeps_a_gradient():
    """rho = 1.5, A = 1, log pi = -1 + ln 1.5: gradient -1.28 where PPO's is 0; TRL's cap 5 lets 1.5 be."""
    loss, gradient, sums = run_ratio(compute_cispo_loss, 1.5, 1.0)
    assert (loss, gradient) == (approx(-1.28 * (math.log(1.5) - 1)), [approx(-1.28)])
    assert sums["clipped"] == 1.0
    _, gradient, sums = run_ratio(compute_cispo_trl_loss, 1.5, 1.0)
    assert (gradient, sums["clipped"]) == ([approx(-1.5)], 0.0)
    _, gradient, _ = run_ratio(compute_cispo_loss, 0.5, 1.0)
    assert gradient == [approx(-0.8)]


def test_cispo_forms_agree():
    """TRL's epsilon_high = 5 is clips of 1 and 4."""
    for ratio in (0.01, 0.9, 4.9, 7.0):
        ours = run_ratio(compute_cispo_loss, ratio, -1.0, clip_low=1.0, clip_high=4.0)
        assert ours == run_ratio(compute_cispo_trl_loss, ratio, -1.0, ratio_cap=5.0)


def test_sapo():
    """rho = 1: -2 A / tau with gradient -A; tau = 2 and rho = 3: 2 sigmoid(4), fading."""
    loss, gradient, _ = run_ratio(compute_sapo_loss, 1.0, -1.0)
    assert (loss, gradient) == (approx(2 / 1.05), [approx(1.0)])
    loss, gradient, _ = run_ratio(compute_sapo_loss, 3.0, 1.0, tau_positive=2.0)
    gate = 1 / (1 + math.exp(-4.0))
    assert (loss, gradient) == (approx(-2 * gate), [approx(-4 * gate * (1 - gate) * 3)])
    with pytest.raises(ValueError, match=r"0 and 1\.05"):
        run_ratio(compute_sapo_loss, 1.0, 1.0, tau_positive=0.0)


@pytest.mark.parametrize(
    ("old", "new", "advantage", "kept"),
    [
        (0.01, 0.1, 1.0, True),  # tenfold, and still rare
        (0.5, 0.71, 1.0, False),  # 1.42-fold, and much mass
        (0.5, 0.29, 1.0, True),  # a good token that fell may come back
        (0.5, 0.29, -1.0, False),
        (0.5, 0.71, -1.0, True),
    ],
)
def test_dppo_limits_probabilities(old, new, advantage, kept):
    """Limits .2 on pi - mu: what a ratio's clip would hold or let pass is decided by mass."""
    given = (t(math.log(old)), t(advantage), t(1.0))
    _, gradient, sums = run(compute_dppo_tv_loss, t(math.log(new)), *given)
    assert gradient == [approx(-advantage * new / old if kept else 0.0)]
    assert sums["clipped"] == float(not kept)


def test_corrections():
    """Ratios (.5, 1.5, 3), cap 2: held (.5, 1.5, 2), masked (.5, 1.5, 0), IcePop from .8 (0, 1.5, 0).

    A log-ratio of -1000 counts as -20, as in verl.
    """
    log_ratios_A = t(0.5, 1.5, 3.0).log()
    assert correct_ratios(log_ratios_A).tolist() == approx([0.5, 1.5, 2.0])
    assert correct_ratios(log_ratios_A, masked=True).tolist() == approx([0.5, 1.5, 0.0])
    icepop = correct_ratios(log_ratios_A, masked=True, floor=0.8)
    assert icepop.tolist() == approx([0.0, 1.5, 0.0])
    assert correct_ratios(t(-1000.0)).item() == approx(math.exp(-20), rel=1e-12, abs=0)
    with pytest.raises(ValueError, match=r"floor = 0\.8, masked = False"):
        correct_ratios(log_ratios_A, floor=0.8)


def test_off_policy_sequences():
    """Means (-.5, .1), threshold .3: bad tokens of the first do not count, good ones do."""
    weights_A = mask_off_policy_sequences(
        t(-0.5, 0.1), t(-1.0, 1.0, -1.0), torch.tensor([0, 0, 1]), threshold=0.3
    )
    assert weights_A.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(("masked", "loss"), [(False, -2.2), (True, 0.0)])
def test_decoupled(masked, loss):
    """pi_prox / mu = 3 and pi / pi_prox = 1.1, A = 1: -2 * 1.1 held at 2, and 0 masked."""
    proximal = math.log(3.0) - 2.0
    actual, gradient, sums = run(
        compute_decoupled_loss,
        t(proximal + math.log(1.1)),
        t(-2.0),
        t(1.0),
        t(1.0),
        proximal_logprobs_A=t(proximal),
        masked=masked,
    )
    assert (actual, gradient) == (approx(loss), [approx(loss)])
    assert (sums["corrected"], sums["clipped"]) == (1.0, 0.0)


def test_masking_does_not_change_the_denominator():
    """Two tokens, one masked, token-mean: half of the other's -1, not all of it."""
    weights_A = correct_ratios(t(0.0, math.log(3.0)), masked=True)
    coefficients_A = compute_coefficients(t(2.0), mode="token-mean").expand(2)
    loss, _, _ = run(
        compute_ppo_clip_loss, t(-1, -1), t(-1, -1), t(1, 1), coefficients_A * weights_A
    )
    assert loss == approx(-0.5)


def test_overlong_penalty():
    """Limit 100, buffer 20: lengths (80, 90, 100, 130) lose (0, .5, 1, 1)."""
    lengths_N = torch.tensor([80, 90, 100, 130])
    penalty_N = compute_overlong_penalty(lengths_N, max_length=100, buffer=20)
    assert penalty_N.tolist() == approx([0.0, -0.5, -1.0, -1.0])
    with pytest.raises(ValueError, match="buffer of 0 tokens"):
        compute_overlong_penalty(lengths_N, max_length=100, buffer=0)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k1", 0.5, 1.0),
        ("k2", 0.125, 0.5),
        ("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5)),
        ("k1+", 0.5, 0.5),
        ("k3+", math.exp(-0.5) - 0.5, 0.5),
    ],
)
def test_kl(estimator, value, gradient):
    """log pi = -1, log pi_ref = -1.5: values and gradients at log pi."""
    leaf = t(-1.0).requires_grad_()
    actual = compute_kl(leaf, t(-1.5), estimator=estimator)
    assert actual.item() == approx(value)
    assert torch.autograd.grad(actual.sum(), leaf)[0].item() == approx(gradient)


def test_kl_limits():
    """d = 30: k3 is held at 10, without gradient; k3+ keeps k2's, -30."""
    leaf = t(-31.0).requires_grad_()
    for estimator, gradient in (("k3", 0.0), ("k3+", -30.0)):
        values = compute_kl(leaf, t(-1.0), estimator=estimator)
        assert values.item() == approx(10.0)
        assert torch.autograd.grad(values.sum(), leaf)[0].item() == approx(gradient)
    with pytest.raises(ValueError, match="'k4' is none of"):
        compute_kl(leaf, t(-1.0), estimator="k4")


def test_value_loss():
    """V = 1, V_old = 0, R = 2, clip .5: 1.125 without gradient; unclipped .5 with -1."""
    loss, gradient, sums = run(compute_value_loss, t(1.0), t(0.0), t(2.0), t(1.0))
    assert (loss, gradient) == (approx(1.125), [0.0])
    assert sums == {"value_clipped": 1.0, "value_error": 1.0}
    loss, gradient, _ = run(compute_value_loss, t(1.0), t(0.0), t(2.0), t(1.0), clip=None)
    assert (loss, gradient) == (approx(0.5), [approx(-1.0)])


def test_awr():
    """beta = .5: A = (-1, 0, 1, 2) weigh e^-2, 1, e^2 and, not e^4, 20."""
    weights = [math.exp(-2), 1.0, math.exp(2), 20.0]
    assert compute_awr_weights(t(-1, 0, 1, 2), beta=0.5).tolist() == approx(weights)
    loss, gradient, sums = run(
        compute_awr_loss, t(-1, -1, -1, -1), t(-1, 0, 1, 2), t(1, 1, 1, 0.5), beta=0.5
    )
    assert loss == approx(sum(weights) - 10.0)
    assert gradient == approx([-w for w in weights[:3]] + [-10.0])
    assert sums["weight"] == approx(sum(weights))
    assert sums["weight_squared"] == approx(sum(w * w for w in weights))
    assert sums["capped"] == 1.0
    with pytest.raises(ValueError, match="beta = 0 "):
        compute_awr_weights(t(1.0), beta=0.0)


def test_kto():
    """beta = 1, h = 1 and z = 0: .2689 if good, .7311 if bad; z below 0 counts as 0."""
    good, bad = 1 / (1 + math.e), math.e / (1 + math.e)
    given = (t(-1, -1), t(-2, -2), torch.tensor([True, False]))
    loss, gradient, figures = run(compute_kto_loss, *given, divergence=-3.0, beta=1.0)
    assert loss == approx((good + bad) / 2)
    assert gradient == approx([-good * bad / 2, good * bad / 2])
    assert figures == {
        "divergence": 0.0,
        "implicit_reward_good": 1.0,
        "implicit_reward_bad": 1.0,
    }
    loss, _, _ = run(compute_kto_loss, *given, divergence=1.0, beta=1.0, undesirable_weight=3.0)
    assert loss == approx((0.5 + 3 * 0.5) / 2)


def test_dpo():
    """beta = 1, h = (1, 0, 3): pairs (0, 1) and (0, 2) have margins 1 and -2."""
    pairs_P2 = torch.tensor([[0, 1], [0, 2]])
    loss, gradient, figures = run(compute_dpo_loss, t(0, -1, 2), t(-1, -1, -1), pairs_P2, beta=1.0)
    miss = [1 / (1 + math.exp(1)), 1 / (1 + math.exp(-2))]  # sigmoid(-margin)
    assert loss == approx(-(math.log(1 - miss[0]) + math.log(1 - miss[1])) / 2)
    assert gradient == approx([-sum(miss) / 2, miss[0] / 2, miss[1] / 2])
    assert figures == {"pair_accuracy": 0.5, "pair_margin": -0.5}


def test_dpo_without_pairs():
    """A step none of whose tasks has two attempts: loss and gradient 0."""
    none_P2 = torch.empty(0, 2, dtype=torch.long)
    loss, gradient, _ = run(compute_dpo_loss, t(-1, -2), t(-1, -1), none_P2)
    assert (loss, gradient) == (0.0, [0.0, 0.0])


def test_dro_of_trajectories():
    """G - V = 1, tau = .5: at h = 1 loss .125 and gradient -.25, at h = 2 both are 0."""
    loss, gradient, figures = run(compute_dro_loss, t(-1.0), t(-2.0), t(1.0), tau=0.5)
    assert (loss, gradient, figures["residual"]) == (approx(0.125), [approx(-0.25)], approx(0.5))
    assert run(compute_dro_loss, t(0.0), t(-2.0), t(1.0), tau=0.5)[:2] == (0.0, [0.0])


def test_dro_of_tokens():
    """A = 1, beta = .5, log pi = -1, log mu = -2: loss 1 + .25, gradient -(1 - .5)."""
    loss, gradient, sums = run(compute_dro_token_loss, t(-1.0), t(-2.0), t(1.0), t(1.0), beta=0.5)
    assert (loss, gradient) == (approx(1.25), [approx(-0.5)])
    assert sums == {"drift_squared": 1.0}


def test_topr():
    """log mu = -2, R = -1: loss -2 and gradient 1 at log pi = -2; -4 e^-2 and e^-2 at -4."""
    assert run(compute_topr_loss, t(-2.0), t(-2.0), t(-1.0))[:2] == (approx(-2.0), [approx(1.0)])
    fades = math.exp(-2)
    loss, gradient, figures = run(compute_topr_loss, t(-4.0), t(-2.0), t(-1.0))
    assert (loss, gradient) == (approx(-4 * fades), [approx(fades)])
    assert figures == {"positive_share": 0.0, "negative_weight": approx(fades)}


def test_topr_weighs_good_trajectories_by_1():
    """R = 2 far off policy: gradient -2 / N all the same; R = 0 counts as good and teaches nothing."""
    loss, gradient, figures = run(compute_topr_loss, t(-9.0, -1.0), t(-2.0, -1.0), t(2.0, 0.0))
    assert (loss, gradient) == (approx(9.0), [approx(-1.0), 0.0])
    assert figures == {"positive_share": 1.0}


@pytest.mark.parametrize("baseline", [-0.5, 0.0, 0.4])
def test_topr_positive_share(baseline):
    """3 of 10 rewards are +1, the others -1: p (1 - c) / (1 + (1 - 2 p) c), the paper's."""
    rewards_N = t(*[1.0] * 3, *[-1.0] * 7)
    zeros = torch.zeros(10, dtype=torch.float64)
    _, _, figures = run(compute_topr_loss, zeros, zeros, rewards_N - baseline)
    assert figures["positive_share"] == approx(0.3 * (1 - baseline) / (1 + 0.4 * baseline))


def test_row_modes_say_what_they_need():
    """A mode of rows on trajectories, a missing horizon and an unknown mode are refused by name."""
    one = torch.ones(1)
    with pytest.raises(ValueError, match="'seq-mean-token-sum' counts rows"):
        compute_coefficients(one, mode="seq-mean-token-sum")
    with pytest.raises(ValueError, match="constant horizon, which is None"):
        compute_row_coefficients(one, one, one.long(), mode="seq-mean-token-sum-norm")
    with pytest.raises(ValueError, match="'mean' is none of traj-mean"):
        compute_row_coefficients(one, one, one.long() * 0, mode="mean")
