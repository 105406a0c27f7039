"""Log-probabilities at the temperature that was sampled at: scores, gradients, what is legal."""

from dataclasses import replace

import pytest
import torch

from starpo_train.config import ModelSection
from starpo_train.dataset import read_trajectories
from starpo_train.errors import ProvenanceError
from starpo_train.head import compute_logprobs
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.pack import pack_rows
from starpo_train.progress import _describe_start as describe_start
from starpo_train.provenance import explain_inexact
from starpo_train.run import train
from starpo_train.temperature import accept_processed, compare_conventions

PROMPT, GOOD, BAD, END = [0, 20, 21], 40, 50, 1


@pytest.mark.parametrize("entropy", [0.0, 0.7])
def test_gradient_of_the_tempered_head_equals_autograd_in_float64(monkeypatch, entropy):
    """Chunks of 3 tokens, another temperature for each: values and all gradients."""
    monkeypatch.setattr("starpo_train.head.CHUNK_ELEMENTS", {"cpu": 3 * 11})
    torch.manual_seed(0)
    ids, heat = torch.randint(11, (8,)), torch.linspace(0.3, 2.0, 8)
    leaves = [torch.randn(8, 5), torch.randn(11, 5), torch.randn(11)]
    hidden, weight, bias = (leaf.clone().requires_grad_() for leaf in leaves)
    actual = [*compute_logprobs(hidden, weight, bias, ids, heat)]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    full = torch.log_softmax((exact[0] @ exact[1].T + exact[2]) / heat.double()[:, None], -1)
    expected = [full.gather(1, ids[:, None])[:, 0], -(full.exp() * full).sum(1)]
    for logprobs, entropies in (actual, expected):
        factors = torch.arange(8.0, dtype=logprobs.dtype)
        (logprobs * factors + entropy * entropies * factors.flip(0)).sum().backward()
    actual += [hidden.grad, weight.grad, bias.grad]
    expected += [leaf.grad for leaf in exact]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["tree", "packed", "rows"])
def test_rows_are_scored_at_their_own_temperature(hand, model_folder, attention):
    """Three rows with the same ids and two temperatures, one of them twice: no score is shared."""
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu", attention=attention))
    (plain,) = hand.rows([9])
    hot = replace(plain, temperatures_T=plain.action_mask_T * 1.0 + 1.0)
    batch = pack_rows([hot, plain, hot], [0, 1, 2], share=attention == "tree")
    ids = torch.from_numpy(plain.input_ids_T)
    with torch.no_grad():
        scores = policy.score_actions(batch)
        policy.model.set_attn_implementation("sdpa")
        logits = policy.model(input_ids=ids[None]).logits[0].double()
    at = torch.from_numpy(plain.action_mask_T.nonzero()[0])
    expected = [
        torch.log_softmax(logits[at - 1] / heat, -1).gather(1, ids[at, None])[:, 0]
        for heat in (2.0, 1.0, 2.0)
    ]
    torch.testing.assert_close(scores.logprobs_A.double(), torch.cat(expected), atol=1e-5, rtol=0)


def write_tempered(hand, folder, model, *, recorded_at, temperature=0.5, **columns):
    """Runs sampled at a temperature, with the model's log-probabilities at `recorded_at`."""
    policy = load_policy(ModelSection(path=str(model), device="cpu"))
    policy.model.set_attn_implementation("sdpa")
    rows = []
    for i in range(8):
        prompt, answer = [*PROMPT, 60 + i // 4], [(GOOD, BAD)[i % 2], END]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        logprobs = torch.log_softmax(logits / recorded_at, -1)
        turn = hand.turn(
            prompt,
            answer,
            logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist(),
            **{"temperature": temperature, "logprob_provenance": "estimated"} | columns,
        )
        rows.append(
            hand.trajectory(
                f"t{i}",
                [turn],
                reward=1.0 - i % 2,
                task_id=f"k{i // 4}",
                usable_for="sft",
                reasons=["logprob_estimated"],
            )
        )
    return hand.dataset(folder, rows)


def test_processed_logprobs_at_another_temperature_are_trained_on(
    configure, hand, model_folder, tmp_path
):
    """Recorded by the model itself at 0.5: no drift, a ratio of 1, and all are trained."""
    dataset = write_tempered(hand, tmp_path / "data", model_folder, recorded_at=0.5)
    result = train(
        configure(
            dataset=dataset, data={"logprobs": "processed"}, train={"trajectories_per_step": 8}
        )
    )
    start, step = read_metrics(result.metrics_path)[:2]
    assert start["num_trajectories"] == 8
    assert start["logprob_drift_mean_abs"] < 1e-5
    assert start["logprob_conventions"]["better"] == "processed"
    assert "seems wrong" not in describe_start(start)
    assert abs(step["approx_kl"]) < 1e-5
    assert step["ess_fraction"] == pytest.approx(1, abs=1e-5)


def test_raw_logprobs_at_another_temperature_form_no_ratio(configure, hand, model_folder, tmp_path):
    """Refused as before; the refusal says when they look processed."""
    dataset = write_tempered(hand, tmp_path / "data", model_folder, recorded_at=0.5)
    with pytest.raises(ProvenanceError, match=r"estimated in 8.*fit data.logprobs = 'processed'"):
        train(configure(dataset=dataset))


def test_the_wrong_choice_is_noticed_at_the_start(configure, hand, model_folder, tmp_path):
    """Raw ones taken for processed: the start says by how much they differ, and that it is wrong."""
    dataset = write_tempered(hand, tmp_path / "data", model_folder, recorded_at=1.0)
    result = train(configure(dataset=dataset, data={"logprobs": "processed"}))
    start = read_metrics(result.metrics_path)[0]
    fit = start["logprob_conventions"]
    assert fit["better"] == "raw"
    assert fit["raw"] < 1e-5
    assert fit["processed"] > 0.1
    assert fit["num_tokens"] == 16
    assert "it is 'processed', which seems wrong" in describe_start(start)


@pytest.mark.parametrize(
    "columns", [{"top_p": 0.9}, {"top_k": 5.0}, {"temperature": 0.0}, {"temperature": None}]
)
def test_what_else_reshaped_the_distribution_stays_an_estimate(
    hand, model_folder, tmp_path, columns
):
    """Top-p, top-k and greedy sampling, and a temperature that nobody recorded."""
    dataset = write_tempered(hand, tmp_path / "d", model_folder, recorded_at=0.5, **columns)
    trajectories = [accept_processed(t) for t in read_trajectories(dataset)]
    assert {explain_inexact(t) for t in trajectories} == {"logprob_estimated"}
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    assert compare_conventions(policy, trajectories) is None


def test_other_reasons_against_rl_stay(hand, tmp_path):
    """Processed log-probabilities do not mend a missing turn; a failed call takes nothing away."""
    turn = hand.turn([5], [6], [-1.0], temperature=0.5, logprob_provenance="estimated")
    rows = [
        hand.trajectory(
            name, [turn], reward=1.0, usable_for="sft", reasons=["logprob_estimated", name]
        )
        for name in ("missing_turn", "call_error")
    ]
    dataset = hand.dataset(tmp_path / "data", rows)
    found = {
        t.trajectory_id: explain_inexact(accept_processed(t)) for t in read_trajectories(dataset)
    }
    assert found == {"missing_turn": "missing_turn", "call_error": None}


def test_cloning_is_at_temperature_one(configure, hand, model_folder, tmp_path):
    """Filtered BC forms no ratio, so both settings train the same weights."""
    dataset = write_tempered(hand, tmp_path / "data", model_folder, recorded_at=0.5)
    losses = [
        read_metrics(
            train(
                configure(
                    setting,
                    dataset=dataset,
                    data={"logprobs": setting},
                    algorithm={"name": "filtered_bc"},
                )
            ).metrics_path
        )[1]["loss"]
        for setting in ("raw", "processed")
    ]
    assert losses[0] == losses[1]
