"""Jobs on stdin -> models trained by TRL, one JSON line each way; runs in TRL's own environment.

TRL's defaults are kept but for what would make the comparison unfair: numbers in float32, and what
`methods.py` sets for everybody. Its data are the files of `starpo-trace write`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="starpo-learn-"))

import datasets
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, {"assistant_only_loss": True}),
    "dpo": (DPOTrainer, DPOConfig, {}),
    "kto": (KTOTrainer, KTOConfig, {}),
}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`kind`, `data`, `model`, `output`, `seed`, `settings` -> what was trained."""
    trainer_class, config_class, own = KINDS[job["kind"]]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = datasets.load_dataset("json", data_files=job["data"], split="train")
    config = config_class(
        output_dir=job["output"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        seed=job["seed"],
        **own,
        **job["settings"],
    )
    trainer = trainer_class(
        model=model, args=config, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(job["output"])
    return {"rows": len(rows), "steps": trainer.state.global_step}


def main() -> None:
    """Until stdin ends."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what TRL prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = train(job)
        except Exception as error:  # noqa: BLE001  told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer | {"output": str(Path(job["output"]))}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
