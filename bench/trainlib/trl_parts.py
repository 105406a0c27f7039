"""A batch and a model -> TRL's trainers, at settings under which they do the same work as ours.

Their defaults are bfloat16 and gradient checkpointing; here both are off for everybody.
"""

import os
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="starpo-bench-"))

import datasets
from tokenizers import Tokenizer, models
from trainlib.work import CLIP_HIGH, CLIP_LOW, Work
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

datasets.disable_progress_bars()
PACK_LENGTH = 8192


def make_sft_trainer(work: Work, model: Any, *, packing: bool) -> SFTTrainer:
    rows = {
        "input_ids": [row.input_ids_T.tolist() for row in work.rows],
        "labels": [
            [token if trained else -100 for token, trained in zip(ids, mask, strict=True)]
            for ids, mask in (
                (row.input_ids_T.tolist(), row.action_mask_T.tolist()) for row in work.rows
            )
        ],
    }
    config = SFTConfig(
        **_shared_settings(),
        per_device_train_batch_size=1 if packing else work.rows_per_batch,
        packing=packing,
        packing_strategy="bfd",
        padding_free=not packing,
        max_length=PACK_LENGTH if packing else None,
        loss_type="nll",
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=_make_tokenizer(),
    )


def make_grpo_trainer(work: Work, model: Any) -> GRPOTrainer:
    config = GRPOConfig(
        **_shared_settings(),
        per_device_train_batch_size=work.rows_per_batch,
        num_generations=work.rows_per_batch,
        beta=0.0,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        loss_type="grpo",
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **unused: [0.0] * len(completions),
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * work.rows_per_batch}),
        processing_class=_make_tokenizer(),
    )


def _shared_settings() -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(prefix="starpo-bench-"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": 0.0,
        "report_to": [],
        "disable_tqdm": True,
    }


def _make_tokenizer() -> PreTrainedTokenizerFast:
    """The trainers ask for one; the rows are ids already."""
    words = {"<pad>": 0, "<eos>": 1, "a": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
