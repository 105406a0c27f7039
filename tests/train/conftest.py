"""Hand-made datasets and tiny models for the training tests."""

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from starpo_trace.schema import DATASET_SCHEMA_VERSION, TABLES
from starpo_train.tokens import TokenSequence, TurnTokens, build_rows

_TYPES: dict[str, Any] = {
    "str": pl.String,
    "i64": pl.Int64,
    "f64": pl.Float64,
    "bool": pl.Boolean,
    "list[str]": pl.List(pl.String),
    "list[i32]": pl.List(pl.Int32),
    "list[f64]": pl.List(pl.Float64),
    "list[struct[id:str,name:str,arguments:str]]": pl.List(
        pl.Struct({"id": pl.String, "name": pl.String, "arguments": pl.String})
    ),
    "list[struct[name:str,value:f64,weight:f64]]": pl.List(
        pl.Struct({"name": pl.String, "value": pl.Float64, "weight": pl.Float64})
    ),
}


def make_turn(
    prompt: Sequence[int] | None,
    response: Sequence[int] | None,
    logprobs: Sequence[float] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """One row of the turns table; ids and log-probabilities are exact when given."""
    return {
        "model": "tiny",
        "prompt_base_length": 0,
        "prompt_token_ids": None if prompt is None else list(prompt),
        "response_token_ids": None if response is None else list(response),
        "response_logprobs": None if logprobs is None else list(logprobs),
        "token_provenance": "missing" if prompt is None else "exact",
        "logprob_provenance": "missing" if logprobs is None else "exact",
        **columns,
    }


def make_trajectory(
    trajectory_id: str,
    turns: Sequence[dict[str, Any]],
    *,
    reward: float | None,
    task_id: str | None = "task",
    messages: Sequence[dict[str, Any]] = (),
    rewards: Sequence[dict[str, Any]] = (),
    **columns: Any,
) -> dict[str, Any]:
    """One trajectory with its turns, messages and rewards, for `write_dataset`."""
    row = {
        "trajectory_id": trajectory_id,
        "task_id": task_id,
        "end": "terminated",
        "reward": reward,
        "usable_for": "rl",
        "reasons": [],
        "split": "train",
        "num_turns": len(turns),
        **columns,
    }
    return {
        "trajectories": row,
        "turns": [{"trajectory_id": trajectory_id, "turn": i, **t} for i, t in enumerate(turns)],
        "messages": [{"trajectory_id": trajectory_id, **m} for m in messages],
        "rewards": [{"trajectory_id": trajectory_id, **r} for r in rewards],
    }


def write_tables(path: Path, trajectories: Sequence[dict[str, Any]]) -> Path:
    """Trajectories -> the Delta tables and the manifest of a dataset."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for name in ("states", "spans"):
        rows[name] += [row for trajectory in trajectories for row in trajectory.get(name, ())]
    for trajectory in trajectories:
        rows["trajectories"].append(trajectory["trajectories"])
        rows["turns"] += trajectory["turns"]
        rows["messages"] += trajectory["messages"]
        rows["rewards"] += trajectory["rewards"]
    for name, columns in TABLES.items():
        schema = {column: _TYPES[kind] for column, kind in columns.items()}
        frame = pl.DataFrame(
            [{column: row.get(column) for column in columns} for row in rows[name]], schema=schema
        )
        frame.write_delta(str(path / name))
    manifest = {
        "schema_version": DATASET_SCHEMA_VERSION,
        "digest": "made-by-hand",
        "tables": {name: {"path": name, "version": 0} for name in TABLES},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """Byte-level BPE trained on a few words, with ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["user assistant left right up down goal hole"] * 4
    tokenizer.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = chat_template
    return fast


def build_model_folder(path: Path, *, family: str = "qwen3", seed: int = 0, **changes: Any) -> Path:
    """A two-layer model with random weights and its tokenizer."""
    from transformers import (
        GraniteConfig,
        GraniteForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    config_class, model_class = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "granite": (GraniteConfig, GraniteForCausalLM),  # divides its logits
    }[family]
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "bos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    model_class(config_class(**sizes | changes)).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


@contextmanager
def _import_from(folder: Path, *names: str) -> Iterator[dict[str, ModuleType]]:
    held = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(held)


@pytest.fixture(scope="session")
def import_from() -> Any:
    """`with import_from(folder, *names) as modules`: as a script beside them does.

    Another test's module of such a name (an agent file is called `agent`) is out of the way meanwhile.
    """
    return _import_from


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


def write_run_file(
    path: Path, *, base: Path, dataset: Path, output: str = "run", **sections: dict[str, Any]
) -> Path:
    """A run file for a small run; `sections` add to or replace its options."""
    values: dict[str, dict[str, Any]] = {
        "run": {"output": output},
        "data": {"dataset": str(dataset)},
        "model": {"path": str(base), "device": "cpu"},
        "algorithm": {"name": "starpo"},
        "train": {"trajectories_per_step": 4, "learning_rate": 1e-2, "threads": 1},
        # tiny models at such learning rates are soon found to have collapsed
        "diagnostics": {"early_stop": False},
    }
    for name, options in sections.items():
        values[name] |= options
    lines = []
    for name, options in values.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    path.write_text("\n".join(lines))
    return path


PROMPT = [0, 20, 21]
GOOD, BAD, END = 40, 50, 1


def write_bandit(folder: Path, model: Path, *, num_tasks: int = 2, attempts: int = 4) -> Path:
    """One-turn tasks: answering GOOD is worth 1, BAD 0; log-probabilities from `model` itself."""
    from starpo_train.config import ModelSection
    from starpo_train.model import load_policy

    policy = load_policy(ModelSection(path=str(model), device="cpu"))
    trajectories = []
    for task in range(num_tasks):
        prompt = [*PROMPT, 60 + task]
        for attempt in range(attempts):
            answer = [GOOD if attempt % 2 == 0 else BAD, END]
            turn = make_turn(prompt, answer, score_answer(policy, prompt, answer).tolist())
            trajectories.append(
                make_trajectory(
                    f"task{task}-{attempt}",
                    [turn],
                    reward=float(attempt % 2 == 0),
                    task_id=f"task{task}",
                )
            )
    return write_tables(folder, trajectories)


def score_answer(policy: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of an answer's tokens by transformers' own forward pass."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        policy.model.set_attn_implementation("sdpa")
        logprobs = torch.log_softmax(policy.model(input_ids=ids).logits[0].double(), -1)
        policy.model.set_attn_implementation("starpo_packed")
    return logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]


def make_token_rows(lengths: Sequence[int], *, seed: int = 0) -> list[TokenSequence]:
    """Rows of one turn each: half prompt, half sampled."""
    generator = np.random.default_rng(seed)
    rows: list[TokenSequence] = []
    for i, length in enumerate(lengths):
        ids = generator.integers(2, 300, length).astype(np.int32)
        half = max(1, length // 2)
        turn = TurnTokens(
            turn=0,
            prompt_ids_T=ids[:half],
            response_ids_T=ids[half:],
            logprobs_T=np.zeros(length - half, dtype=np.float32),
            recorded=True,
            trained=True,
        )
        rows += build_rows([turn], trajectory=i)
    return rows


@pytest.fixture(scope="session")
def hand() -> SimpleNamespace:
    """Helpers that make datasets, models and run files by hand."""
    return SimpleNamespace(
        turn=make_turn,
        trajectory=make_trajectory,
        dataset=write_tables,
        tokenizer=build_tokenizer,
        model=build_model_folder,
        run_file=write_run_file,
        bandit=write_bandit,
        score=score_answer,
        rows=make_token_rows,
    )


@pytest.fixture(scope="session")
def read_golden():
    """`read_golden(name)`: the cases of tests/train/golden/NAME.json, which `make oracles` writes."""

    def read(name: str) -> list[dict[str, Any]]:
        file = Path(__file__).parent / "golden" / f"{name}.json"
        return json.loads(file.read_text())["cases"]

    return read


@pytest.fixture(scope="session")
def bandit(hand, model_folder, tmp_path_factory):
    return hand.bandit(tmp_path_factory.mktemp("bandit") / "data", model_folder)


@pytest.fixture
def configure(hand, model_folder, bandit, tmp_path):
    from starpo_train.config import read_run_config

    def build(output="run", *, base=model_folder, dataset=bandit, **sections):
        file = hand.run_file(
            tmp_path / f"{output}.toml", base=base, dataset=dataset, output=output, **sections
        )
        return read_run_config(file)

    return build
