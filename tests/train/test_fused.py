"""Layers that are replaced in a loaded model: the same numbers, and only where they are what they seem."""

import pytest
import torch
from torch.nn.functional import gelu, rms_norm
from transformers import AutoModelForCausalLM

from starpo_train.config import ModelSection
from starpo_train.fused import fuse_layers
from starpo_train.gatedmlp import _GatedMlp, fuse_gated_mlps
from starpo_train.model import load_policy
from starpo_train.norms import _RmsNorm, fuse_norms
from starpo_train.pack import pack_rows
from starpo_train.rotary import rotate_both


def load(folder, **options):
    return load_policy(ModelSection(path=str(folder), device="cpu", **options))


def find_replaced(model):
    """Kinds of layers whose own `forward` is no longer their class's, and how many."""
    kinds = [type(module).__name__ for module in model.modules() if "forward" in vars(module)]
    return {kind: kinds.count(kind) for kind in kinds}


def differentiate(model, logprobs_A):
    (torch.linspace(0.5, 1.5, len(logprobs_A)) * logprobs_A).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("family", "num_norms"), [("qwen3", 9), ("llama", 5)])
def test_replaced_layers_change_no_number(hand, tmp_path, monkeypatch, family, num_norms):
    """Every norm, MLP and attention layer; scores and gradients are those of a model left alone."""
    monkeypatch.setattr("starpo_train.gatedmlp.BLOCK_ELEMENTS", 64 * 5)  # 13 tokens: 3 blocks
    folder = hand.model(tmp_path / "m", family=family)
    policy, (row,) = load(folder), hand.rows([13])
    name = family.capitalize()
    assert find_replaced(policy.model) == {
        f"{name}RMSNorm": num_norms,
        f"{name}MLP": 2,
        f"{name}Attention": 2,
    }
    actual_A = policy.score_actions(pack_rows([row], [0])).logprobs_A
    untouched = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert find_replaced(untouched) == {}
    ids_T, at = torch.from_numpy(row.input_ids_T), torch.from_numpy(row.action_mask_T.nonzero()[0])
    logprobs_TV = torch.log_softmax(untouched(input_ids=ids_T[None]).logits[0], -1)
    expected_A = logprobs_TV[at - 1, ids_T[at]]
    torch.testing.assert_close(actual_A, expected_A, atol=1e-5, rtol=0)
    gradients = differentiate(policy.model, actual_A)
    for name, gradient in differentiate(untouched, expected_A).items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_layers_with_lora_keep_their_own_mlp(model_folder):
    """An MLP whose products have updates beside them is not three plain matrices."""
    assert "Qwen3MLP" not in find_replaced(load(model_folder, lora_rank=2).model)


def test_gradients_are_those_of_the_values(monkeypatch):
    """Against finite differences in float64; the MLP in blocks of two tokens."""
    monkeypatch.setattr("starpo_train.gatedmlp.BLOCK_ELEMENTS", 2 * 6)
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    cos, sin = (torch.randn(1, 3, 8, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(_RmsNorm.apply, (draw(2, 3, 5), draw(5), 1e-6))
    assert torch.autograd.gradcheck(
        _GatedMlp.apply, (draw(5, 4), draw(6, 4), draw(6, 4), draw(4, 6))
    )
    assert torch.autograd.gradcheck(
        lambda query, key: rotate_both(query, key, cos, sin), (draw(1, 4, 3, 8), draw(1, 2, 3, 8))
    )


def test_a_norm_of_its_own_kind_stays():
    """A weight that is added to one is not what the kernel multiplies with."""

    class AddedNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.zeros(8)), 1e-6

        def forward(self, x):
            return (1 + self.weight) * rms_norm(x, (8,), eps=1e-6)

    norm = AddedNorm()
    fuse_norms(norm)
    assert find_replaced(norm) == {}
    assert torch.equal(norm.weight, torch.zeros(8))


def test_an_mlp_of_another_activation_stays():
    """Gemma's has the same three layers around a GELU."""

    class GeluMlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = (torch.nn.Linear(8, 16, bias=False) for _ in range(2))
            self.down_proj, self.act_fn = torch.nn.Linear(16, 8, bias=False), gelu

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    mlp = GeluMlp()
    fuse_gated_mlps(mlp)
    assert find_replaced(mlp) == {}


def test_layers_that_change_the_models_numbers_are_put_back(model_folder):
    """The model as a whole decides, whatever each layer seemed to compute."""
    model = load_policy(ModelSection(path=str(model_folder), device="cpu")).model
    for module in model.modules():
        vars(module).pop("forward", None)
    numbers = iter([torch.zeros(3), torch.full((3,), 1e-3)])
    fuse_layers(model, device="cpu", is_low=False, compute=lambda: next(numbers))
    assert [m for m in model.modules() if "forward" in vars(m)] == []
    fuse_layers(model, device="cpu", is_low=False, compute=lambda: torch.zeros(3))
    assert len([m for m in model.modules() if "forward" in vars(m)]) > 4
