"""Losses against numbers that verl 0.9.1, TRL 1.16 and Liger gave (`make oracles` writes them)."""

from importlib import import_module

import pytest
import torch

from starpo_train.losses.aggregation import compute_row_coefficients
from starpo_train.losses.correction import correct_ratios, mask_off_policy_sequences
from starpo_train.losses.kl import compute_kl

FILES = (
    "losses_verl",
    "gspo_verl",
    "decoupled_verl",
    "awr_verl",
    "topr_verl",
    "value_verl",
    "losses_trl",
    "gspo_trl",
    "kto_trl",
    "dpo_trl",
    "losses_liger",
)


def as_tensors(values):
    return {
        name: torch.tensor(value, dtype=torch.float64 if holds_floats(value) else None)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }


def holds_floats(value):
    return any(holds_floats(v) if isinstance(v, list) else isinstance(v, float) for v in value)


def assert_equal(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FILES)
def test_losses_and_gradients(read_golden, name):
    """Every loss and its gradient at its first argument, as the other package has them."""
    cases = read_golden(name)
    assert len(cases) >= 12
    for case in cases:
        module, function = case["ours"].rsplit(".", 1)
        compute_loss = getattr(import_module(module), function)
        leaf, *rest = as_tensors(case["inputs"]).values()
        output = compute_loss(leaf.requires_grad_(), *rest, **as_tensors(case["options"]))
        assert_equal(output.loss, case["outputs"]["loss"])
        assert_equal(torch.autograd.grad(output.loss, leaf)[0], case["outputs"]["gradient"])


def test_aggregation(read_golden):
    """verl's means of given token losses; it adds 1e-8 to a row's length in one of them."""
    for case in read_golden("aggregation_verl"):
        inputs = as_tensors(case["inputs"])
        rows = len(inputs["num_tokens_R"])
        coefficients_R = compute_row_coefficients(
            inputs["num_tokens_R"],
            torch.ones(rows),
            torch.arange(rows),
            mode=inputs["mode"],
            horizon=inputs["horizon"],
        )
        loss = (coefficients_R[inputs["row_of_A"]] * inputs["values_A"]).sum()
        assert loss.item() == pytest.approx(case["outputs"]["loss"], rel=1e-7, abs=1e-12)


def test_kl(read_golden):
    """verl's estimates and their gradients, also where its limits hold."""
    for case in read_golden("kl_verl"):
        leaf, reference = as_tensors(case["inputs"]).values()
        values = compute_kl(leaf.requires_grad_(), reference, **case["options"])
        assert_equal(values, case["outputs"]["values"])
        assert_equal(torch.autograd.grad(values.sum(), leaf)[0], case["outputs"]["gradient"])


@pytest.mark.parametrize(
    ("name", "function"),
    [("corrections_verl", correct_ratios), ("off_policy_mask_trl", mask_off_policy_sequences)],
)
def test_weights(read_golden, name, function):
    """verl's TIS and IcePop weights, TRL's off-policy sequence mask."""
    for case in read_golden(name):
        weights = function(*as_tensors(case["inputs"]).values(), **case["options"])
        assert_equal(weights, case["outputs"]["weights"])
