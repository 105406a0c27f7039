"""Losses against numbers worked out by hand, and their gradients."""

import math

import pytest
import torch

from starpo_train.losses.aggregation import compute_coefficients
from starpo_train.losses.filtered_bc import compute_filtered_bc_loss
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss


def ppo(ratios, advantages, coefficients=None, **options):
    behaviour = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    logprobs = (behaviour + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    if coefficients is None:
        coefficients = [1.0] * len(ratios)
    output = compute_ppo_clip_loss(
        logprobs,
        behaviour,
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(coefficients, dtype=torch.float64),
        **options,
    )
    output.loss.backward()
    return output, logprobs.grad.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 1.0, -1.28, 0.0),  # too likely already: clipped, no gradient
        (1.1, 1.0, -1.1, -1.1),  # inside: gradient -A rho
        (0.5, 1.0, -0.5, -0.5),  # became unlikely: may always come back
        (1.5, -1.0, 1.5, 1.5),  # bad and more likely: full gradient
        (0.5, -1.0, 0.8, 0.0),  # bad and unlikely enough: clipped
        (2.0, 0.0, 0.0, 0.0),  # nothing to learn
    ],
)
def test_ppo_clip_of_one_token(ratio, advantage, loss, gradient):
    """Clip range [.8, 1.28], one token: value and gradient by hand."""
    output, grad = ppo([ratio], [advantage])
    assert output.loss.item() == pytest.approx(loss)
    assert grad == pytest.approx([gradient])


def test_ppo_clip_weighs_tokens_by_their_coefficients():
    """.25 * -1.28 + .75 * 1.5 = .805; coefficient 0 has neither loss nor gradient."""
    output, grad = ppo([1.5, 1.5, 9.0], [1.0, -1.0, 5.0], [0.25, 0.75, 0.0])
    assert output.loss.item() == pytest.approx(0.805)
    assert grad == pytest.approx([0.0, 1.125, 0.0])


def test_ppo_clip_metrics():
    """Ratios (1, 2), A = 1: one clipped; k3 sum = 2 - 1 - ln 2; ratio sums 3 and 5."""
    output, _ = ppo([1.0, 2.0], [1.0, 1.0])
    assert {name: value.item() for name, value in output.sums.items()} == pytest.approx(
        {
            "clipped": 1.0,
            "kl": 1.0 - math.log(2.0),
            "ratio": 3.0,
            "ratio_squared": 5.0,
            "drift": math.log(2.0),
        }
    )
    assert not any(value.requires_grad for value in output.sums.values())


def test_ppo_clip_survives_an_impossible_token():
    """A log-ratio of -1000 is held at -20: finite loss, no gradient explosion."""
    logprobs = torch.tensor([-1000.0], requires_grad=True)
    zero = torch.zeros(1)
    output = compute_ppo_clip_loss(logprobs, zero, torch.ones(1), torch.ones(1))
    assert output.loss.item() == pytest.approx(-math.exp(-20))


def test_filtered_bc_is_the_weighted_negative_log_likelihood():
    """-(.5 * -1 + .25 * -2) = 1, gradient minus the coefficients."""
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    output = compute_filtered_bc_loss(logprobs, torch.tensor([0.5, 0.25]))
    output.loss.backward()
    assert output.loss.item() == 1.0
    assert logprobs.grad.tolist() == [-0.5, -0.25]


def test_traj_mean_weighs_each_trajectory_the_same():
    """Trajectories of 2 and 8 tokens: 1/4 and 1/16 per token, so each sums to 1/2."""
    actual = compute_coefficients(torch.tensor([2.0, 8.0]), mode="traj-mean")
    assert actual.tolist() == [0.25, 0.0625]


def test_token_mean_weighs_each_token_the_same():
    """Ten tokens in all: 1/10 each, however they are spread over trajectories."""
    actual = compute_coefficients(torch.tensor([2.0, 8.0]), mode="token-mean")
    assert actual.tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("mode", ["traj-mean", "token-mean"])
def test_a_trajectory_without_tokens_is_not_counted(mode):
    """Nothing trained in the second trajectory: the first has the whole mean."""
    actual = compute_coefficients(torch.tensor([4.0, 0.0]), mode=mode)
    assert actual.tolist() == [0.25, 0.0]
