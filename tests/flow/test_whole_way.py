"""Agent call -> spans -> dataset -> training -> checkpoint -> evaluation -> gate -> page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

BIN = Path(sys.executable).parent
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
AGENT = '''
"""Says a few letters; an answer is worth something when it has an "a" in it."""

import starpo_trace

starpo_trace.instrument()


def tasks(split, count, seed):
    return [{"id": f"{split}-{seed}-{n}", "cohort": "even" if n % 2 else "odd"} for n in range(count)]


def play(client, model, task, seed):
    messages = [{"role": "user", "content": task["id"][-1]}]
    said = ""
    for turn in range(2):
        answer = client.chat.completions.create(
            model=model, messages=messages, max_tokens=4, temperature=1.0, seed=seed + turn,
            logprobs=True, extra_body={"return_token_ids": True},
        )
        said += answer.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
        messages.append({"role": "user", "content": "b"})
    starpo_trace.observe(messages)
    return {"reward": float("a" in said), "end": "terminated"}
'''


def write_model(folder: Path) -> None:
    """A two-layer model with random weights over a handful of letters."""
    letters = list("abcdefgh0123456789-")
    vocabulary = {token: n for n, token in enumerate(["<|pad|>", "<|end|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def run(folder: Path, *words: object, code: int = 0) -> str:
    """Run a command as a user would and return what it printed."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def evaluate(folder: Path, name: str, model: str, split: str) -> None:
    """Play eight tasks, four times each, with a checkpoint."""
    (folder / f"{name}.toml").write_text(
        f'[evaluate]\nagent = "agent.py"\nmodel = "{model}"\noutput = "{name}"\n'
        f'policy_id = "{name}"\nsplit = "{split}"\ntasks = 8\nattempts = 4\nconcurrency = 8\n'
    )
    run(folder, BIN / "starpo-train", "evaluate", f"{name}.toml")


@pytest.mark.slow
def test_an_agents_traffic_trains_its_model_and_the_gate_answers(tmp_path):
    """Every command of the tour, on a model with random weights: one release from end to end."""
    write_model(tmp_path / "model")
    (tmp_path / "agent.py").write_text(AGENT)
    evaluate(tmp_path, "traffic", "model", "train")

    run(tmp_path, BIN / "starpo-trace", "export", "traffic/traces", "-o", "dataset")
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert manifest["counts"]["trajectories"] == 32
    assert manifest["counts"]["turns"] == 64
    assert manifest["counts"]["rejected"] == 0
    assert manifest["usable_for"]["rl"] == 32
    accounting = manifest["accounting"]
    # 32 roots, 64 calls, 32 observations, 32 rewards
    assert accounting["spans_read"] == accounting["spans_used"] == 160

    explained = run(tmp_path, BIN / "starpo-train", "explain", "dataset")
    assert "starpo" in explained

    (tmp_path / "run.toml").write_text(
        '[run]\noutput = "run"\n[data]\ndataset = "dataset"\n[model]\npath = "model"\n'
        '[algorithm]\nname = "starpo"\n'
        "[train]\nepochs = 2\ntrajectories_per_step = 16\nlearning_rate = 1e-3\nthreads = 1\n"
    )
    run(tmp_path, BIN / "starpo-train", "run", "run.toml")
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    checkpoint = Path("run") / final["checkpoint"]
    assert (tmp_path / checkpoint / "COMMIT").exists()
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[0])["logprob_drift_mean_abs"] < 1e-4

    evaluate(tmp_path, "before", "model", "test")
    evaluate(tmp_path, "after", str(checkpoint), "test")
    gate = (BIN / "starpo-train", "gate", "--baseline", "before/dataset")
    gate += ("--candidate", "after/dataset", "-o", "gate")
    run(tmp_path, *gate, code=20)  # eight tasks decide nothing
    verdict = json.loads((tmp_path / "gate" / "verdict.json").read_text())
    assert verdict["verdict"] == "INCONCLUSIVE"

    page = ("--baseline", "old=before/dataset", "--candidate", "new=after/dataset")
    page += ("--run", "run", "--verdict", "gate/verdict.json", "--dataset", "dataset")
    run(tmp_path, BIN / "starpo-train", "report", "-o", "page.html", *page)
    assert "INCONCLUSIVE" in (tmp_path / "page.html").read_text()
