"""A loaded policy: packed == rows == padded, exact log-probabilities, no gradient elsewhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from starpo_train.config import ModelSection
from starpo_train.errors import CheckpointError, ModelError
from starpo_train.head import compute_logprobs
from starpo_train.model import load_policy
from starpo_train.pack import pack_rows
from starpo_train.serve.loading import load_model as load_served
from starpo_train.sharding import gather_weights


def load(folder, **options):
    return load_policy(ModelSection(path=str(folder), device="cpu", **options))


def score_and_differentiate(policy, batch):
    policy.model.zero_grad()
    scores = policy.score_actions(batch)
    # a different factor per token, so that no gradient can hide behind another
    factors = torch.linspace(0.5, 1.5, batch.num_actions)
    (-(factors * scores.logprobs_A).sum() + 0.1 * scores.entropies_A.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in policy.trained_parameters()}
    return scores, gradients


def plain_forward(model, rows):
    """Reference: one padded batch through the model's own forward pass, full log-softmax."""
    longest = max(row.num_tokens for row in rows)
    ids = torch.stack(
        [
            pad(torch.from_numpy(row.input_ids_T), (0, longest - row.num_tokens), value=0)
            for row in rows
        ]
    )
    mask = torch.stack([torch.arange(longest) < row.num_tokens for row in rows]).long()
    logprobs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float(), -1)
    chosen, entropies = [], []
    for i, row in enumerate(rows):
        at = torch.from_numpy(row.action_mask_T.nonzero()[0])
        chosen.append(logprobs[i, at - 1, ids[i, at]])
        entropies.append(-(logprobs[i, at - 1].exp() * logprobs[i, at - 1]).sum(-1))
    return torch.cat(chosen), torch.cat(entropies)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_packing_changes_neither_loss_nor_gradient(hand, tmp_path, family):
    """Packed rows, single rows and a padded batch agree to 1e-5 in scores and gradients."""
    policy = load(hand.model(tmp_path / "m", family=family))
    assert (policy.packed, policy.fast_head) == (True, True)
    rows = hand.rows([13, 5, 2, 21])
    batch = pack_rows(rows, [0, 1, 2, 3])
    packed, packed_gradients = score_and_differentiate(policy, batch)

    policy.model.set_attn_implementation("sdpa")
    single, single_gradients = score_and_differentiate(replace(policy, packed=False), batch)

    policy.model.zero_grad()
    chosen, entropies = plain_forward(policy.model, rows)
    factors = torch.linspace(0.5, 1.5, batch.num_actions)
    (-(factors * chosen).sum() + 0.1 * entropies.sum()).backward()
    for scores in (packed, single):
        torch.testing.assert_close(scores.logprobs_A, chosen, atol=1e-5, rtol=0)
        torch.testing.assert_close(scores.entropies_A, entropies, atol=1e-5, rtol=0)
    for name, parameter in policy.trained_parameters():
        scale = float(parameter.grad.abs().max())
        for gradients in (packed_gradients, single_gradients):
            assert float((gradients[name] - parameter.grad).abs().max()) <= 1e-5 * max(1.0, scale)


def test_a_row_never_sees_its_neighbours(hand, model_folder):
    """Replacing a packed neighbour leaves a row's log-probabilities bit for bit the same."""
    policy = load(model_folder)
    rows, others = hand.rows([9, 12]), hand.rows([9, 12], seed=1)
    with torch.no_grad():
        first = policy.score_actions(pack_rows(rows, [0, 1])).logprobs_A
        second = policy.score_actions(pack_rows([others[0], rows[1]], [0, 1])).logprobs_A
    count = rows[0].num_actions
    assert torch.equal(first[count:], second[count:])
    assert not torch.equal(first[:count], second[:count])


@pytest.mark.parametrize("lengths", [[21, 12, 12, 12, 2], [6, 6, 6], [3, 9, 9, 3]])
@pytest.mark.parametrize("window", [{}, {"sliding_window": 6, "max_window_layers": 0}])
def test_rows_that_share_a_call_keep_their_numbers(hand, tmp_path, monkeypatch, lengths, window):
    """In one batch, as on CUDA, rows of one length score as they do one by one."""
    folder = hand.model(tmp_path / "m", use_sliding_window=bool(window), **window)
    policy = load(folder, attention="packed")
    batch = pack_rows(hand.rows(lengths), range(len(lengths)))
    expected, gradients = score_and_differentiate(policy, batch)
    monkeypatch.setattr("starpo_train.attention.SHARING_DEVICES", {"cpu"})
    actual, shared_gradients = score_and_differentiate(policy, batch)
    torch.testing.assert_close(actual.logprobs_A, expected.logprobs_A, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_sliding_window_rows_keep_their_window(hand, tmp_path):
    """A window shorter than a row packs to the same numbers as the model's own forward pass."""
    folder = hand.model(
        tmp_path / "m", use_sliding_window=True, sliding_window=6, max_window_layers=0
    )
    policy = load(folder, attention="packed")
    rows = hand.rows([20, 4])
    with torch.no_grad():
        packed = policy.score_actions(pack_rows(rows, [0, 1])).logprobs_A
        policy.model.set_attn_implementation("sdpa")
        expected, _ = plain_forward(policy.model, rows)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=0)


def test_no_gradient_from_tokens_that_are_not_trained(hand, model_folder):
    """What follows the last trained token cannot change any gradient: it has no loss."""
    policy = load(model_folder)
    (row,) = hand.rows([12])
    longer = replace(
        row,
        input_ids_T=np.concatenate([row.input_ids_T, [7, 8, 9]]),
        **{
            name: np.concatenate([getattr(row, name), np.zeros(3, dtype=bool)])
            for name in ("action_mask_T", "turn_end_mask_T", "turn_start_mask_T")
        },
        turn_T=np.concatenate([row.turn_T, [-1] * 3]),
        logprobs_T=None,
    )
    _, gradients = score_and_differentiate(policy, pack_rows([row], [0]))
    _, longer_gradients = score_and_differentiate(policy, pack_rows([longer], [0]))
    for name, gradient in gradients.items():
        torch.testing.assert_close(longer_gradients[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_entropy_loss", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_head_in_parts_equals_full_log_softmax(monkeypatch, dtype, has_entropy_loss):
    """Tiles of 3 tokens and 4 words (float32), chunks of 3 tokens (else): values and gradients."""
    monkeypatch.setattr("starpo_train.head.CHUNK_ELEMENTS", {"cpu": 3 * 11})
    monkeypatch.setattr("starpo_train.headtiles.TILE_TOKENS", 3)
    monkeypatch.setattr("starpo_train.headtiles.TILE_WORDS", 4)
    torch.manual_seed(0)
    ids = torch.randint(11, (8,))
    leaves = [torch.randn(8, 5), torch.randn(11, 5), torch.randn(11)]
    results = []
    for in_parts in (True, False):
        kind = dtype if in_parts else torch.float64
        hidden, weight, bias = (leaf.clone().to(kind).requires_grad_() for leaf in leaves)
        if in_parts:
            logprobs, entropies = compute_logprobs(hidden, weight, bias, ids)
        else:
            full = torch.log_softmax(hidden @ weight.T + bias, -1)
            logprobs, entropies = full.gather(1, ids[:, None])[:, 0], -(full.exp() * full).sum(1)
        loss = (logprobs * torch.arange(8.0)).sum()
        if has_entropy_loss:
            loss = loss + (entropies * torch.arange(8.0).flip(0)).sum()
        loss.backward()
        results.append([logprobs, entropies, hidden.grad, weight.grad, bias.grad])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.double(), expected.double(), atol=2e-5, rtol=1e-5)


def test_head_in_tiles_survives_large_logits():
    """Logits of several hundred: finite numbers, and those of float64."""
    torch.manual_seed(0)
    hidden, weight = 40 * torch.randn(4, 16), torch.randn(3000, 16)
    ids = (hidden @ weight.T).argmax(1)
    logprobs, entropies = compute_logprobs(hidden, weight, None, ids)
    full = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    torch.testing.assert_close(
        logprobs.double(), full.gather(1, ids[:, None])[:, 0], atol=1e-3, rtol=0
    )
    torch.testing.assert_close(entropies.double(), -(full.exp() * full).sum(1), atol=1e-3, rtol=0)


def test_lora_trains_few_weights_and_exports_plain_ones(hand, model_folder):
    """Merged weights have the plain model's names and give the LoRA model's log-probabilities."""
    from transformers import AutoModelForCausalLM

    policy = load(model_folder, lora_rank=2)
    names = [name for name, _ in policy.trained_parameters()]
    assert names
    assert all(".lora_" in name for name in names)
    with torch.no_grad():
        for _, parameter in policy.trained_parameters():
            parameter.add_(0.1)
    rows = hand.rows([10, 6])
    with torch.no_grad():
        expected = policy.score_actions(pack_rows(rows, [0, 1])).logprobs_A
        plain = AutoModelForCausalLM.from_pretrained(model_folder)
        before, _ = plain_forward(plain, rows)
        plain.load_state_dict(gather_weights(policy))
        actual, _ = plain_forward(plain, rows)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert float((actual - before).abs().max()) > 0.01


def test_a_head_with_scaling_is_not_taken_for_a_plain_one(tmp_path, hand):
    """Granite divides its logits; the check at loading notices and uses the model's own head."""
    hand.model(tmp_path, family="granite", logits_scaling=3.0)
    policy = load(tmp_path)
    assert (policy.packed, policy.fast_head) == (True, False)
    rows = hand.rows([9, 5])
    with torch.no_grad():
        actual = policy.score_actions(pack_rows(rows, [0, 1])).logprobs_A
        policy.model.set_attn_implementation("sdpa")
        expected, _ = plain_forward(policy.model, rows)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_state_features_are_taken_before_each_turn(hand, model_folder):
    """The feature of a turn start does not depend on what the turn then samples."""
    policy = load(model_folder)
    (row,) = hand.rows([10])
    other = replace(row, input_ids_T=np.where(row.action_mask_T, 5, row.input_ids_T))
    features = policy.compute_state_features(pack_rows([row, other], [0, 1]))
    assert features.shape == (2, 32)
    torch.testing.assert_close(features[0], features[1], atol=1e-6, rtol=0)


def test_missing_model_folder_is_named(tmp_path):
    """A path that does not exist is an error before transformers tries the network."""
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "nowhere")


def test_folder_without_a_model_is_refused(tmp_path):
    """An empty folder is a ModelError that names it."""
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load(tmp_path)


@pytest.fixture
def copied_folder(model_folder, tmp_path):
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.mark.parametrize("read", [load, load_served], ids=["train", "serve"])
def test_damaged_model_folders_are_refused(copied_folder, read):
    """Cut weights, an uncommitted checkpoint, a checkpoint that was changed."""
    weights = copied_folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded") as e:
        read(copied_folder)
    assert "\n" not in str(e.value)
    weights.write_bytes(whole)
    (copied_folder / "trainer").mkdir()
    with pytest.raises(CheckpointError, match="an uncommitted checkpoint"):
        read(copied_folder)
    commit = {"step": 1, "files": {"model.safetensors": {"sha256": "0"}}}
    (copied_folder / "COMMIT").write_text(json.dumps(commit))
    with pytest.raises(CheckpointError, match="was added after the commit"):
        read(copied_folder)


@pytest.mark.parametrize("read", [load, load_served], ids=["train", "serve"])
def test_an_unknown_name_asks_no_network(read, monkeypatch):
    """A name that is neither a folder nor cached is refused with where it was looked for."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    with pytest.raises(ModelError, match=f"'nope': no such model folder .{Path.cwd()}/nope"):
        read("nope")


def test_gradient_checkpointing_changes_no_gradient(hand, model_folder):
    """Recomputing activations keeps the rows apart and the gradients equal."""
    batch = pack_rows(hand.rows([13, 5]), [0, 1])
    scores, gradients = score_and_differentiate(load(model_folder), batch)
    again, recomputed = score_and_differentiate(
        load(model_folder, gradient_checkpointing=True), batch
    )
    assert torch.equal(scores.logprobs_A, again.logprobs_A)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5)


def test_bfloat16_products_keep_float32_scores_and_gradients(hand, model_folder):
    """Within bfloat16's rounding of the float32 numbers, and weights stay float32."""
    batch = pack_rows(hand.rows([13, 5]), [0, 1])
    expected, gradients = score_and_differentiate(load(model_folder), batch)
    actual, rounded = score_and_differentiate(load(model_folder, precision="bfloat16"), batch)
    assert actual.logprobs_A.dtype == torch.float32
    torch.testing.assert_close(actual.logprobs_A, expected.logprobs_A, atol=0.2, rtol=0)
    assert not torch.equal(actual.logprobs_A, expected.logprobs_A)
    for name, gradient in gradients.items():
        assert rounded[name].dtype == torch.float32
        similarity = torch.cosine_similarity(rounded[name].flatten(), gradient.flatten(), dim=0)
        assert float(similarity) > 0.98


def test_lora_keeps_frozen_weights_in_bfloat16_where_that_is_exact(hand, tmp_path):
    """Half the memory, the same products: scores and gradients are equal to the bit."""
    folder = hand.model(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    odd = "model.layers.0.mlp.up_proj.weight"
    low = {name: x if name == odd else x.bfloat16().float() for name, x in state.items()}
    save_file(low, folder / "model.safetensors", metadata={"format": "pt"})
    options = {"lora_rank": 2, "precision": "bfloat16"}
    halved = load(folder, **options)
    kinds = {
        name: module.base_layer.weight.dtype
        for name, module in halved.model.named_modules()
        if hasattr(module, "base_layer")
    }
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {odd[:-7]}
    assert set(kinds.values()) == {torch.float32, torch.bfloat16}
    whole = load(folder, **options)
    for module in whole.model.modules():
        if hasattr(module, "base_layer"):
            module.base_layer.float()
    batch = pack_rows(hand.rows([13, 5]), [0, 1])
    results = []
    for policy in (halved, whole):
        for name, parameter in policy.trained_parameters():
            if "lora_B" in name:
                torch.manual_seed(len(name))
                torch.nn.init.normal_(parameter, std=0.1)
        scores, gradients = score_and_differentiate(policy, batch)
        results.append([scores.logprobs_A, scores.entropies_A, *gradients.values()])
        results[-1] += [gather_weights(policy)[name] for name in state]
    assert [torch.equal(a, b) for a, b in zip(*results, strict=True)] == [True] * len(results[0])
    assert {x.dtype for x in gather_weights(halved).values()} == {torch.float32}
