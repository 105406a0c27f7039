"""Logits -> sampled tokens and log-probabilities."""

import math

import torch

from starpo_train.serve.sampling import sample_tokens, token_logprobs

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]
LOGITS_1V = torch.tensor([PROBABILITIES]).log()


def sample(uniform: float, *, temperature: float = 1.0, top_p: float = 1.0) -> int:
    tokens = sample_tokens(
        LOGITS_1V,
        temperature_B=torch.tensor([temperature]),
        top_p_B=torch.tensor([top_p]),
        uniform_B=torch.tensor([uniform], dtype=torch.float64),
    )
    return int(tokens)


def test_uniform_numbers_fall_into_the_cumulative_distribution():
    """0.5 | 0.8 | 0.95 | 1 are the edges of the four tokens."""
    assert [sample(u) for u in (0.0, 0.499, 0.501, 0.799, 0.801, 0.949, 0.951, 0.9999999)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_temperature_reshapes_the_distribution():
    """At temperature 1/2 probabilities are squared: 0.25 of 0.365 is 0.685 for the first."""
    assert [sample(u, temperature=0.5) for u in (0.68, 0.69)] == [0, 1]


def test_temperature_zero_is_greedy():
    """Whatever the random number."""
    assert [sample(u, temperature=0.0) for u in (0.01, 0.99)] == [0, 0]


def test_top_p_keeps_the_token_that_reaches_p():
    """0.5 + 0.3 reaches 0.6, so two tokens stay and share 5 : 3 -> edge at 0.625."""
    assert [sample(u, top_p=0.6) for u in (0.62, 0.63, 0.9999)] == [0, 1, 1]


def test_top_p_below_the_likeliest_keeps_it():
    """There is always one token to sample."""
    assert sample(0.9999, top_p=0.01) == 0


def test_rows_do_not_depend_on_each_other():
    """A batch of two rows with different settings gives what each row gives alone."""
    tokens = sample_tokens(
        LOGITS_1V.repeat(2, 1),
        temperature_B=torch.tensor([1.0, 0.0]),
        top_p_B=torch.tensor([0.6, 1.0]),
        uniform_B=torch.tensor([0.63, 0.99], dtype=torch.float64),
    )
    assert tokens.tolist() == [1, 0]


def test_logprobs_are_those_of_the_raw_logits():
    """Log of the probability, and a constant added to all logits changes nothing."""
    logprob = token_logprobs(LOGITS_1V + 7.0, torch.tensor([2]))
    assert math.isclose(math.log(0.15), float(logprob), rel_tol=1e-5)
