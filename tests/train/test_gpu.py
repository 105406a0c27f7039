"""On CUDA: the same numbers as on the CPU, and runs that resume bit for bit. `pytest -m gpu`."""

import hashlib
import os
import signal
from dataclasses import replace

import pytest
import torch

from starpo_train.config import ModelSection
from starpo_train.head import compute_logprobs
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.pack import pack_rows
from starpo_train.run import train
from starpo_train.run_folder import read_resumed_config

pytestmark = pytest.mark.gpu
MODEL = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def folder(hand, tmp_path_factory):
    return hand.model(tmp_path_factory.mktemp("gpu-model"), **MODEL)


@pytest.mark.parametrize("is_deterministic", [True, False])
def test_gradients_repeat_to_the_bit(hand, folder, is_deterministic, monkeypatch):
    """The same pack twice, in bfloat16, at lengths where kernels split their sums."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    policy = load_policy(ModelSection(path=str(folder)))
    batch = make_batch(hand, [500, 37, 2, 490, 510, 400])
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        runs = [differentiate(policy, batch)[2] for _ in range(6)]
    finally:
        torch.use_deterministic_algorithms(False)
    same = [all(torch.equal(run[n], runs[0][n]) for n in run) for run in runs]
    assert same == [True] * 6


def make_batch(hand, lengths):
    rows = hand.rows(lengths)
    return pack_rows(rows, range(len(rows)))


def differentiate(policy, batch):
    policy.model.zero_grad()
    scores = policy.score_actions(batch)
    factors = torch.linspace(0.5, 1.5, batch.num_actions, device=policy.device)
    (-(factors * scores.logprobs_A).sum() + 0.1 * scores.entropies_A.sum()).backward()
    gradients = {name: p.grad.cpu().clone() for name, p in policy.trained_parameters()}
    return scores.logprobs_A.detach().cpu(), scores.entropies_A.detach().cpu(), gradients


@pytest.mark.parametrize("packed", [True, False])
def test_float32_on_cuda_gives_the_cpus_numbers(hand, folder, packed):
    """Scores and every gradient within what float32 allows, packed and row by row."""
    batch = make_batch(hand, [120, 37, 2, 200])
    results = []
    for device in ("cpu", "cuda"):
        section = ModelSection(path=str(folder), device=device, precision="float32")
        policy = load_policy(section)
        if not packed:
            policy.model.set_attn_implementation("sdpa")
        results.append(differentiate(replace(policy, packed=packed), batch))
    (expected, entropies, gradients), (actual, own_entropies, own_gradients) = results
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(own_entropies, entropies, atol=1e-4, rtol=0)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        assert float((own_gradients[name] - gradient).abs().max()) <= 1e-4 * max(1.0, scale), name


def test_a_tree_on_cuda_gives_the_cpus_numbers(hand, folder):
    """Rows that share 150 tokens, in one FlexAttention call, in float32; forward and backward."""
    rows = hand.rows([300, 300, 300, 40])
    for row in rows[1:3]:
        row.input_ids_T[:150] = rows[0].input_ids_T[:150]
    results = []
    for device in ("cpu", "cuda"):
        section = ModelSection(
            path=str(folder), device=device, precision="float32", attention="tree"
        )
        batch = pack_rows(rows, range(len(rows)), share=True)
        assert batch.num_tokens == 940 - 2 * 150
        results.append(differentiate(load_policy(section), batch))
    (expected, _, gradients), (actual, _, own_gradients) = results
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        assert float((own_gradients[name] - gradient).abs().max()) <= 1e-3 * max(1.0, scale), name


def test_bfloat16_is_the_default_and_near_float32(hand, folder):
    """Log-probabilities within a few hundredths of a nat on average, gradients in direction."""
    batch = make_batch(hand, [120, 37, 2, 200])
    exact = load_policy(ModelSection(path=str(folder), device="cuda", precision="float32"))
    policy = load_policy(ModelSection(path=str(folder)))
    assert (policy.device.type, policy.autocast) == ("cuda", True)
    expected, _, gradients = differentiate(exact, batch)
    actual, _, own_gradients = differentiate(policy, batch)
    assert float((actual - expected).abs().mean()) < 0.03
    flat, own = (torch.cat([g[n].flatten() for n in gradients]) for g in (gradients, own_gradients))
    assert float(torch.cosine_similarity(flat, own, dim=0)) > 0.999


def test_the_head_keeps_what_the_product_added_up():
    """bfloat16 products, float32 logits: nearer to float32 than logits in bfloat16 are."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    hidden = torch.randn(500, 256, device="cuda", generator=generator)
    weight = torch.randn(40_000, 256, device="cuda", generator=generator) / 4
    ids = torch.randint(40_000, (500,), device="cuda", generator=generator)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(1, ids[:, None])[:, 0]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        ours, _ = compute_logprobs(hidden, weight, None, ids)
        plain = torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, ids[:, None])[:, 0]
    ours_error, plain_error = (float((x.double() - exact).abs().mean()) for x in (ours, plain))
    assert ours_error < 0.75 * plain_error


class InterruptAt:
    def __init__(self, step):
        self.step = step

    def __call__(self, record):
        if record.get("step") == self.step and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_interrupted_run_resumes_bit_for_bit(
    configure, hand, folder, tmp_path, lora_rank, precision
):
    """Two whole runs, and one stopped in the middle and resumed, end in the same weights."""
    dataset = hand.bandit(tmp_path / "data", folder, num_tasks=6)
    sections = {
        "model": {"device": "cuda", "lora_rank": lora_rank, "precision": precision},
        "train": {"epochs": 3, "trajectories_per_step": 8, "learning_rate": 1e-3},
    }

    def configured(name):
        return configure(name, base=folder, dataset=dataset, **sections)

    first, second = train(configured("first")), train(configured("second"))
    part = train(configured("part"), progress=InterruptAt(4))
    assert (part.interrupted, part.num_steps) == (True, 4)
    resumed = train(read_resumed_config(part.metrics_path.parent), resume=True)
    assert (resumed.interrupted, resumed.num_steps) == (False, 9)
    hashes = [
        hashlib.sha256((run.final_path / "model.safetensors").read_bytes()).hexdigest()
        for run in (first, second, resumed)
    ]
    assert hashes == [hashes[0]] * 3


def test_starpo_learns_on_cuda(configure, hand, folder, tmp_path):
    """The rewarded answer becomes likelier than it was, in bfloat16."""
    dataset = hand.bandit(tmp_path / "data", folder, num_tasks=2)
    result = train(
        configure(
            "run",
            base=folder,
            dataset=dataset,
            model={"device": "cuda"},
            train={"epochs": 8, "trajectories_per_step": 8, "learning_rate": 1e-3},
        )
    )
    before = load_policy(ModelSection(path=str(folder), device="cpu"))
    after = load_policy(ModelSection(path=str(result.final_path), device="cpu"))
    prompt = [0, 20, 21, 60]
    good, bad = [40, 1], [50, 1]
    change = [
        float((hand.score(after, prompt, answer) - hand.score(before, prompt, answer))[0])
        for answer in (good, bad)
    ]
    assert change[0] > 0.1
    assert change[1] < 0
    steps = [record for record in read_metrics(result.metrics_path) if "loss" in record]
    assert all(record["ess_fraction"] > 0.1 for record in steps)
