"""What must hold of every loss, whatever the numbers.

Suffixes: A trained tokens, R rows, N trajectories.
"""

import math
from itertools import pairwise

import pytest
import torch

from starpo_train.losses.aggregation import compute_coefficients, compute_row_coefficients
from starpo_train.losses.awr import compute_awr_loss
from starpo_train.losses.cispo import compute_cispo_loss, compute_cispo_trl_loss
from starpo_train.losses.decoupled import compute_decoupled_loss
from starpo_train.losses.dppo_tv import compute_dppo_tv_loss
from starpo_train.losses.dro import compute_dro_loss, compute_dro_token_loss
from starpo_train.losses.filtered_bc import compute_filtered_bc_loss
from starpo_train.losses.gspo import compute_gspo_loss
from starpo_train.losses.kl import compute_kl
from starpo_train.losses.kto import compute_kto_loss
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.sapo import compute_sapo_loss
from starpo_train.losses.topr import compute_topr_loss
from starpo_train.losses.value import compute_value_loss

ROW_MODES = (
    "traj-mean",
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)


def use_dual_clip(*given):
    return compute_ppo_clip_loss(*given, dual_clip=3.0)


def use_decoupled(logprobs_A, behaviour_A, *given):
    proximal_A = (logprobs_A.detach() + behaviour_A) / 2
    return compute_decoupled_loss(
        logprobs_A, behaviour_A, *given, proximal_logprobs_A=proximal_A, masked=True
    )


def use_dro(*given):
    return compute_dro_token_loss(*given, beta=0.5)


def use_awr(logprobs_A, behaviour_A, advantages_A, coefficients_A):
    return compute_awr_loss(logprobs_A, advantages_A, coefficients_A, beta=0.7)


def use_cloning(logprobs_A, behaviour_A, advantages_A, coefficients_A):
    return compute_filtered_bc_loss(logprobs_A, coefficients_A)


def use_value(*given):
    return compute_value_loss(*given)


RATIO_LOSSES = [
    compute_ppo_clip_loss,
    use_dual_clip,
    compute_cispo_loss,
    compute_cispo_trl_loss,
    compute_sapo_loss,
    compute_dppo_tv_loss,
    use_decoupled,
]
TOKEN_LOSSES = [*RATIO_LOSSES, use_dro, use_awr, use_cloning, use_value]


def make_tokens(count, seed=0):
    """Log-probabilities, behaviour's, advantages and coefficients of some tokens."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, count, generator=generator, dtype=torch.float64)
    logprobs_A = -values[0].abs()
    return [logprobs_A, logprobs_A + 0.4 * values[1], values[2], values[3].abs()]


def run(compute, given):
    """Loss, gradient at the first argument and sums."""
    leaf = given[0].detach().clone().requires_grad_()
    output = compute(leaf, *given[1:])
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return output.loss.detach(), gradient, output.sums


@pytest.mark.parametrize("compute", TOKEN_LOSSES)
def test_order_and_split_of_tokens_do_not_matter(compute):
    """Shuffled and dealt over three micro-batches, loss, gradient and sums add up to the same."""
    given = make_tokens(50)
    loss, gradient, sums = run(compute, given)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    parts = [run(compute, [values[part] for values in given]) for part in order.split([7, 30, 13])]
    back = torch.empty_like(gradient)
    back[order] = torch.cat([part[1] for part in parts])
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(back, gradient)
    for name, value in sums.items():
        torch.testing.assert_close(sum(part[2][name] for part in parts), value)


@pytest.mark.parametrize("compute", TOKEN_LOSSES)
def test_a_token_of_coefficient_0_has_no_part(compute):
    """Neither loss nor gradient, however far off it is, and no other token notices."""
    given = make_tokens(20)
    loss, gradient, _ = run(compute, given)
    far = torch.tensor([-300.0, 0.0, -0.5], dtype=torch.float64)
    padding = [far, far.flip(0), far, torch.zeros(3, dtype=torch.float64)]
    padded = [torch.cat(pair) for pair in zip(given, padding, strict=True)]
    padded_loss, padded_gradient, _ = run(compute, padded)
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_gradient[:20], gradient)
    assert padded_gradient[20:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("compute", TOKEN_LOSSES)
def test_a_token_twice_at_half_its_coefficient_is_one_token(compute):
    """A row duplicated with half the weight each changes neither the loss nor the gradient's sum."""
    given = make_tokens(20)
    loss, gradient, _ = run(compute, given)
    twice = [torch.cat([values, values]) for values in given]
    twice[3] = twice[3] / 2
    double_loss, double_gradient, _ = run(compute, twice)
    torch.testing.assert_close(double_loss, loss)
    torch.testing.assert_close(double_gradient[:20] + double_gradient[20:], gradient)


@pytest.mark.parametrize("compute", RATIO_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_ratios_stay_finite(compute, dtype):
    """Log-ratios of +-1000 under both signs: finite loss, gradient and sums, in the given dtype."""
    far_A = torch.tensor([-1000.0, -1000.0, 0.0, 0.0], dtype=dtype)
    advantages_A = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype)
    loss, gradient, sums = run(
        compute, [far_A, far_A.flip(0), advantages_A, torch.ones_like(far_A)]
    )
    assert loss.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert all(torch.isfinite(value) for value in sums.values())


@pytest.mark.parametrize("compute", RATIO_LOSSES)
def test_on_policy_every_ratio_loss_is_the_policy_gradient(compute):
    """At pi = mu the gradient at log pi is -coefficient * A, whichever way ratios are held."""
    logprobs_A, _, advantages_A, coefficients_A = make_tokens(30)
    _, gradient, _ = run(compute, [logprobs_A, logprobs_A, advantages_A, coefficients_A])
    torch.testing.assert_close(gradient, -coefficients_A * advantages_A)


def sum_up(num_tokens_R, weights_R, trajectory_of_R, values_R, mode):
    """Loss of rows whose tokens all have the row's value."""
    coefficients_R = compute_row_coefficients(
        torch.tensor(num_tokens_R),
        torch.tensor(weights_R),
        torch.tensor(trajectory_of_R),
        mode=mode,
        horizon=10.0,
    )
    tokens_R = torch.tensor(num_tokens_R) * torch.tensor(weights_R)
    return (coefficients_R * tokens_R * torch.tensor(values_R)).sum().item()


@pytest.mark.parametrize(
    ("mode", "loss"),
    [
        ("traj-mean", ((3 * 1.0 + 2 * 2.0) / 5 + 4.0) / 2),
        ("token-mean", (3 * 1.0 + 2 * 2.0 + 1 * 4.0) / 6),
        ("token-sum", 3 * 1.0 + 2 * 2.0 + 1 * 4.0),
        ("seq-mean-token-mean", (1.0 + 2.0 + 4.0) / 3),
        ("seq-mean-token-sum", (3.0 + 4.0 + 4.0) / 3),
        ("seq-mean-token-sum-norm", (3.0 + 4.0 + 4.0) / 30),
    ],
)
def test_row_coefficients_by_hand(mode, loss):
    """Rows of 3, 2 and 1 tokens worth 1, 2 and 4; the first two of one trajectory; one empty row."""
    actual = sum_up([3, 2, 1, 0], [1.0, 1.0, 1.0, 1.0], [0, 0, 1, 2], [1.0, 2.0, 4.0, 9.0], mode)
    assert actual == pytest.approx(loss)


@pytest.mark.parametrize("mode", ROW_MODES)
def test_a_row_twice_at_half_its_weight_is_one_row(mode):
    """Duplicated rows of one trajectory count as often as their weights say, in every mode."""
    once = sum_up([3, 2], [1.0, 1.0], [0, 1], [1.0, 2.0], mode)
    twice = sum_up([3, 3, 2], [0.5, 0.5, 1.0], [0, 0, 1], [1.0, 1.0, 2.0], mode)
    assert twice == pytest.approx(once)


@pytest.mark.parametrize("mode", ["traj-mean", "token-mean", "token-sum"])
def test_row_coefficients_are_the_trajectories_where_rows_do_not_count(mode):
    """One way over rows and one over trajectories to the same factors."""
    num_tokens_R, of_R = torch.tensor([3.0, 2.0, 4.0]), torch.tensor([0, 0, 1])
    over_rows = compute_row_coefficients(num_tokens_R, torch.ones(3), of_R, mode=mode)
    over_trajectories = compute_coefficients(torch.tensor([5.0, 4.0]), mode=mode)[of_R]
    assert over_rows.tolist() == pytest.approx(over_trajectories.tolist())


@pytest.mark.parametrize("mode", ROW_MODES)
def test_nothing_trained_has_coefficients_of_0(mode):
    """Empty rows only, and no rows at all: zeros, no division by 0."""
    for rows in (3, 0):
        empty = torch.zeros(rows)
        of_R = torch.zeros(rows, dtype=torch.long)
        actual = compute_row_coefficients(empty, torch.ones(rows), of_R, mode=mode, horizon=9.0)
        assert actual.tolist() == [0.0] * rows


def test_gspo_does_not_depend_on_order_or_split():
    """Tokens shuffled: same loss and gradient at the trajectories; parts of them add up."""
    generator = torch.Generator().manual_seed(2)
    means_N = 0.3 * torch.randn(5, generator=generator, dtype=torch.float64)
    of_A = torch.randint(5, (40,), generator=generator)
    _, _, advantages_A, coefficients_A = make_tokens(40)
    given = [advantages_A, of_A, coefficients_A]
    loss, gradient, _ = run(compute_gspo_loss, [means_N, *given])
    order = torch.randperm(40, generator=generator)
    parts = [
        run(compute_gspo_loss, [means_N, *[values[part] for values in given]])
        for part in order.split([11, 29])
    ]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(sum(part[1] for part in parts), gradient)


def test_topr_gradients_of_bad_trajectories_are_bounded():
    """|gradient| <= |R| / N everywhere, and it falls to 0 as the trajectory becomes unlikely."""
    behaviour = torch.full((8,), -5.0, dtype=torch.float64)
    ahead = torch.tensor([20.0, 3.0, 0.0, -1.0, -5.0, -50.0, -800.0, -1e6], dtype=torch.float64)
    outcomes = torch.full((8,), -2.0, dtype=torch.float64)
    loss, gradient, _ = run(compute_topr_loss, [behaviour + ahead, behaviour, outcomes])
    assert torch.isfinite(loss)
    assert gradient.abs().max().item() == pytest.approx(2.0 / 8)
    sizes = gradient.tolist()
    assert all(before >= after for before, after in pairwise(sizes))
    assert sizes[-2:] == [0.0, 0.0]


def test_topr_on_an_impossible_trajectory_is_0():
    """log pi = -inf of a bad one: loss 0 and gradient 0, not NaN."""
    loss, gradient, _ = run(
        compute_topr_loss, [torch.tensor([-math.inf]), torch.tensor([-3.0]), torch.tensor([-1.0])]
    )
    assert loss.item() == 0.0
    assert gradient.tolist() == [0.0]


@pytest.mark.parametrize("ahead", [-1000.0, 1000.0])
def test_trajectory_losses_stay_finite(ahead):
    """Summed log-ratios of +-1000, in float32 as well: no NaN in losses and gradients."""
    for dtype in (torch.float32, torch.float64):
        logprobs_N = torch.full((2,), -1500.0, dtype=dtype)
        reference_N = logprobs_N - ahead
        outcomes_N = torch.tensor([1.0, -1.0], dtype=dtype)
        good_N = outcomes_N > 0
        for compute, given in (
            (compute_topr_loss, [outcomes_N]),
            (lambda *a: compute_dro_loss(*a, tau=0.1), [outcomes_N]),
            (lambda *a: compute_kto_loss(*a, divergence=0.0), [good_N]),
            (lambda *a: compute_gspo_loss(a[0] - a[1], *a[2:]), make_pair(dtype)),
        ):
            loss, gradient, sums = run(compute, [logprobs_N, reference_N, *given])
            assert loss.dtype == dtype
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()
            assert all(torch.isfinite(value) for value in sums.values())


def make_pair(dtype):
    one = torch.ones(2, dtype=dtype)
    return [torch.tensor([1.0, -1.0], dtype=dtype), torch.tensor([0, 1]), one]


def test_k2_has_the_gradient_of_the_divergence():
    """Three outcomes, pi and pi_ref by hand: E[k2' grad log pi] is grad KL; k1's mean is 0.

    E over pi of d value / d log pi * d log pi / d logits, against autograd through the exact sum.
    """
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logprobs = logits.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    chances = logprobs.exp().detach()
    for estimator, right in (
        ("k2", True),
        ("k1+", True),
        ("k3+", True),
        ("k1", False),
        ("k3", False),
    ):
        mean = (chances * compute_kl(logprobs, reference, estimator=estimator)).sum()
        (actual,) = torch.autograd.grad(mean, logits, retain_graph=True)
        assert torch.allclose(actual, expected, atol=1e-12) == right
        if estimator != "k2":
            assert mean.item() == pytest.approx(exact.item())
