"""Policy -> the files of a model folder: weights, tokenizer, and what the base model had beside them."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from torch import Tensor

from starpo_train.policy import Policy

_TAKEN: Final = (
    "LICEN[CS]E*",
    "NOTICE*",
    "USE_POLICY*",
    "chat_template*",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
)
"""Files of the base model that are copied where saving has not written them."""


def save_model_folder(
    policy: Policy, folder: Path, *, weights: dict[str, Tensor], base: Path | None
) -> None:
    """Write what transformers and vLLM load; `base` is the folder that training began from."""
    policy.model.save_pretrained(folder, state_dict=weights)
    policy.tokenizer.save_pretrained(folder)
    if base is None or not base.is_dir():
        return
    for file in sorted(base.iterdir()):
        is_taken = any(fnmatch(file.name, pattern) for pattern in _TAKEN)
        if is_taken and file.is_file() and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
