"""Learning rates by hand, AdamW against torch's own, and metrics files."""

import json
from types import SimpleNamespace

import pytest
import torch

from starpo_train.config import TrainSection
from starpo_train.errors import CheckpointError
from starpo_train.metrics import MetricsWriter, read_metrics
from starpo_train.optimizer import Optimizer


def build(total_steps=100, **options):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    policy = SimpleNamespace(trained_parameters=layer.named_parameters)
    return layer, Optimizer(policy, TrainSection(**options), total_steps=total_steps)


def test_learning_rate_warms_up_and_stays():
    """Four warm-up steps of 100 at 1e-3: fifths of it, then all of it."""
    _, optimizer = build(learning_rate=1e-3, warmup_fraction=0.04)
    rates = [optimizer.learning_rate_at(step) for step in (0, 1, 3, 4, 99)]
    assert rates == pytest.approx([2e-4, 4e-4, 8e-4, 1e-3, 1e-3])


def test_cosine_falls_to_a_tenth():
    """Half-way between 1 and .1 in the middle, .1 at the end."""
    _, optimizer = build(learning_rate=1.0, warmup_fraction=0.0, schedule="cosine")
    rates = [optimizer.learning_rate_at(step) for step in (0, 50, 100)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])


def test_first_adamw_step_by_hand():
    """The first step moves by lr against the gradient's sign; only the matrix decays by lr * wd."""
    layer, optimizer = build(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0.0)
    before = [p.detach().clone() for p in (layer.weight, layer.bias)]
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.apply(0)
    torch.testing.assert_close(layer.weight.detach(), before[0] * 0.95 - 0.1)
    torch.testing.assert_close(layer.bias.detach(), before[1] - 0.1)


def test_gradients_are_clipped_to_the_norm():
    """Eight gradients of 1 have norm sqrt(8); clipped to 1 each is 1/sqrt(8)."""
    layer, optimizer = build(max_grad_norm=1.0)
    layer(torch.ones(1, 3)).sum().backward()
    assert optimizer.clip_gradients() == pytest.approx(8**0.5)
    assert layer.bias.grad.tolist() == pytest.approx([8**-0.5] * 2, rel=1e-5)


def test_snapshot_restores_the_moments():
    """After restoring, the next step is bit for bit the one not interrupted."""
    ends = []
    for restored in (False, True):
        layer, optimizer = build(learning_rate=0.1)
        for step in range(3):
            if step == 2 and restored:
                tensors, weights = optimizer.snapshot(), layer.state_dict()
                layer, optimizer = build(learning_rate=0.1)
                layer.load_state_dict(weights)
                optimizer.restore(tensors)
            layer(torch.arange(3.0)[None]).pow(2).sum().backward()
            optimizer.apply(step)
        ends.append(layer.weight.detach().clone())
    assert torch.equal(*ends)


def test_moments_of_another_model_are_refused():
    """A missing and a wrongly shaped moment name the parameter."""
    layer, optimizer = build()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.apply(0)
    tensors = optimizer.snapshot()
    missing = {name: t for name, t in tensors.items() if name != "adamw.step.bias"}
    with pytest.raises(CheckpointError, match="'bias' is missing"):
        optimizer.restore(missing)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(1,\)"):
        optimizer.restore(tensors | {"adamw.exp_avg.weight": torch.zeros(1)})


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    """Records up to step 2 stay; a torn last line and later steps go."""
    file = tmp_path / "metrics.jsonl"
    records = [{"event": "start"}, {"step": 1}, {"step": 2}, {"step": 3}]
    file.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 4, "lo')
    writer = MetricsWriter(file, keep_up_to_step=2)
    writer.write({"step": 3, "loss": float("nan")})
    writer.close()
    assert read_metrics(file) == [*records[:3], {"step": 3, "loss": None}]


def test_a_gradient_of_nothing_moves_nothing():
    """After a real step, AdamW's momentum alone would go on; with a norm of 0 it does not."""
    layer, optimizer = build(learning_rate=0.1, warmup_fraction=0.0)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.apply(0, grad_norm=1.0)
    before = layer.weight.detach().clone()
    (0 * layer(torch.ones(1, 3)).sum()).backward()
    optimizer.apply(1, grad_norm=0.0)
    assert torch.equal(layer.weight.detach(), before)
    (0 * layer(torch.ones(1, 3)).sum()).backward()
    optimizer.apply(1)
    assert not torch.equal(layer.weight.detach(), before)
