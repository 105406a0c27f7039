"""Families of models: each scores as transformers does, trains, and is loaded again."""

import numpy as np
import pytest
import torch
import transformers

from starpo_train.config import ModelSection
from starpo_train.errors import ModelError
from starpo_train.model import load_policy
from starpo_train.pack import pack_rows
from starpo_train.run import open_trainer
from starpo_train.signals import StopRequest
from starpo_train.tokens import TurnTokens, build_rows

WINDOW = 6
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
FAMILIES = {
    # configuration, its own options, what `auto` gives, whether the head is a plain layer
    "qwen2": ("Qwen2Config", {}, "tree", True),
    "qwen3": ("Qwen3Config", {"head_dim": 8}, "tree", True),
    "llama": ("LlamaConfig", {}, "tree", True),
    "mistral": ("MistralConfig", {"head_dim": 8, "sliding_window": WINDOW}, "packed", True),
    "gemma2": (
        "Gemma2Config",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "rows",
        False,
    ),
    "gemma3": (
        "Gemma3TextConfig",
        GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
        "packed",
        True,
    ),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}, "tree", True),
    "phi": ("PhiConfig", {}, "tree", True),
    "gpt_neox": ("GPTNeoXConfig", {}, "tree", True),
}


def build(hand, path, family, **changes):
    name, options, *_ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES | options | changes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    hand.tokenizer().save_pretrained(path)
    return path


def load(folder, **options):
    return load_policy(ModelSection(path=str(folder), device="cpu", **options))


def load_plain(folder, **changes):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **changes
    )
    return model.eval()


def make_rows(num_shared, tails):
    """Rows that begin alike."""
    generator = np.random.default_rng(0)
    prompt = generator.integers(2, 300, num_shared).astype(np.int32)
    rows = []
    for i, length in enumerate(tails):
        turn = TurnTokens(
            turn=0,
            prompt_ids_T=prompt,
            response_ids_T=generator.integers(2, 300, length).astype(np.int32),
            logprobs_T=np.zeros(length, dtype=np.float32),
            recorded=True,
            trained=True,
        )
        rows += build_rows([turn], trajectory=i)
    return rows


@torch.no_grad()
def score_plainly(model, rows):
    """Each row alone through the model's own forward pass."""
    scores = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids_T)
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1].float(), -1)
        at = torch.from_numpy(row.action_mask_T.nonzero()[0])
        scores.append(logprobs[at - 1, ids[at]])
    return torch.cat(scores)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_models_own_forward_pass(hand, tmp_path, family, lora_rank):
    """Rows longer than the window, one after another and, where that is allowed, as a tree."""
    folder = build(hand, tmp_path / "m", family)
    policy = load(folder, lora_rank=lora_rank)
    _, _, attention, fast_head = FAMILIES[family]
    assert (policy.attention, policy.fast_head) == (attention, fast_head)
    rows = make_rows(12, [9, 7, 11])
    expected = score_plainly(load_plain(folder), rows)
    for share in (False, True):
        if share and attention != "tree":
            continue
        batch = pack_rows(rows, range(3), share=share)
        assert batch.num_tokens == (39 if share else 63)
        with torch.no_grad():
            actual = policy.score_actions(batch).logprobs_A
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_the_window_is_in_these_scores(hand, tmp_path, family):
    """Without it they would be others, so that equality above says something."""
    folder = build(hand, tmp_path / "m", family)
    rows = make_rows(12, [9, 7, 11])
    narrow, wide = (
        score_plainly(load_plain(folder, **options), rows)
        for options in ({}, {"sliding_window": 512})
    )
    assert float((narrow - wide).abs().max()) > 0.1


def test_capped_scores_keep_the_attention_that_caps(hand, tmp_path):
    """Gemma 2 asked for `rows`: not PyTorch's kernel, which has no cap."""
    folder = build(hand, tmp_path / "m", "gemma2")
    policy = load(folder, attention="rows")
    assert policy.model.config._attn_implementation == "eager"
    rows = make_rows(12, [9, 7, 11])
    expected = score_plainly(load_plain(folder), rows)
    uncapped = score_plainly(load_plain(folder, attn_logit_softcapping=None), rows)
    with torch.no_grad():
        actual = policy.score_actions(pack_rows(rows, range(3))).logprobs_A
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)
    assert float((uncapped - expected).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_rows_within_the_window_may_be_a_tree(hand, tmp_path, family):
    """A window of 64: shorter rows share their prefixes, and 64 is the longest that may."""
    policy = load(build(hand, tmp_path / "m", family, sliding_window=64))
    assert (policy.attention, policy.shared_up_to) == ("tree", 64)
    rows = make_rows(12, [9, 7, 11])
    expected = score_plainly(load_plain(tmp_path / "m"), rows)
    with torch.no_grad():
        actual = policy.score_actions(pack_rows(rows, range(3), share=True)).logprobs_A
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def test_a_family_without_lora_is_refused_with_the_setting(hand, tmp_path):
    """peft cannot wrap Mamba's layers; the error names the setting."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=1, eos_token_id=1
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    hand.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.lora_rank = 2: no LoRA"):
        load(tmp_path, lora_rank=2)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_trains_and_the_checkpoint_is_loaded_again(
    configure, hand, tmp_path, family, lora_rank
):
    """Behaviour is the model itself: no drift at first; afterwards other logits, kept by saving."""
    folder = build(hand, tmp_path / "m", family)
    plain = load_plain(folder)
    trajectories = []
    for i in range(4):
        turn = TurnTokens(
            turn=0,
            prompt_ids_T=np.arange(20, 30, dtype=np.int32),
            response_ids_T=np.array([40 + i, 1], dtype=np.int32),
            logprobs_T=None,
            recorded=True,
            trained=True,
        )
        logprobs = score_plainly(plain, build_rows([turn], trajectory=0)).tolist()
        made = hand.turn(turn.prompt_ids_T.tolist(), turn.response_ids_T.tolist(), logprobs)
        trajectories.append(hand.trajectory(f"t{i}", [made], reward=float(i % 2)))
    config = configure(
        base=folder,
        dataset=hand.dataset(tmp_path / "data", trajectories),
        model={"lora_rank": lora_rank},
    )
    records = []
    trainer = open_trainer(config, resume=False, progress=records.append)
    with StopRequest() as stop:
        result = trainer.run(stop)
    assert records[0]["logprob_drift_mean_abs"] < 1e-5
    rows = make_rows(12, [9, 7, 11])
    with torch.no_grad():
        trained = trainer.policy.score_actions(pack_rows(rows, range(3))).logprobs_A
    reloaded = score_plainly(load_plain(result.final_path), rows)
    torch.testing.assert_close(reloaded, trained, atol=2e-5, rtol=0)
    assert float((reloaded - score_plainly(plain, rows)).abs().max()) > 1e-3
    again = load(result.final_path)
    with torch.no_grad():
        scores = again.score_actions(pack_rows(rows, range(3))).logprobs_A
    torch.testing.assert_close(scores, trained, atol=2e-5, rtol=0)
