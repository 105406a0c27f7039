"""Checkpoint of a run -> a folder to ship: weights in the type asked for, or the LoRA adapter alone.

Checkpoints stay float32, because a resume must be exact. The export is committed as they are.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch

from starpo_train.checkpoint import (
    Checkpoint,
    advise_intact,
    commit_folder,
    read_checkpoint,
)
from starpo_train.errors import CheckpointError, ConfigError
from starpo_train.modelfolder import COMMIT_FILE, STATE_FOLDER, list_files, read_commit
from starpo_train.run_folder import find_result, require_outside

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def export_model(run: Path, output: Path, *, dtype: str = "float32") -> Path:
    """Write the model of a run's last checkpoint, or of a checkpoint's folder, to `output`.

    Raises:
        CheckpointError: none was committed, or it is damaged.
        ConfigError: `output` exists and is not empty, or is inside a run.
    """
    require_outside(output)
    source = find_checkpoint(run)
    with advise_intact(source, _advise):
        commit = read_commit(source)
    _claim(output)
    for file in list_files(source):
        name = file.relative_to(source)
        if name.parts[0] in (STATE_FOLDER, COMMIT_FILE):
            continue
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            _convert_weights(file, output / name, DTYPES[dtype])
        else:
            shutil.copyfile(file, output / name)
    _update_json(output / "config.json", dtype=dtype)
    _update_index(output)
    lineage = commit["lineage"] | {"exported": {"checkpoint": source.name, "dtype": dtype}}
    commit_folder(output, step=commit["step"], lineage=lineage)
    return output


def export_adapter(run: Path, output: Path, *, dtype: str = "float32") -> Path:
    """Write the LoRA adapter of a run's last checkpoint in peft's format.

    Raises:
        CheckpointError: none was committed, or it is damaged.
        ConfigError: the run trained every weight, or `output` cannot be used.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    require_outside(output)
    source = find_checkpoint(run)
    with advise_intact(source, _advise):
        checkpoint = read_checkpoint(source)
    model = checkpoint.lineage["config"]["model"]
    rank, alpha = model["lora_rank"], model["lora_alpha"]
    if rank == 0:
        raise ConfigError(f"{run}: the run trained every weight, there is no adapter to export.")
    tensors = _name_as_peft(checkpoint, DTYPES[dtype])
    _claim(output)
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha if alpha is not None else 2 * rank),
        target_modules=sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors}),
        base_model_name_or_path=checkpoint.lineage["base_model"],
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(output))
    save_file(tensors, output / "adapter_model.safetensors", metadata={"format": "pt"})
    lineage = checkpoint.lineage | {
        "exported": {"checkpoint": checkpoint.path.name, "dtype": dtype}
    }
    commit_folder(output, step=checkpoint.step, lineage=lineage)
    return output


def find_checkpoint(run: Path) -> Path:
    """A checkpoint's own folder, or a run's result, before its end the newest one.

    Raises:
        CheckpointError: nothing was committed there.
    """
    if (run / COMMIT_FILE).is_file():
        return run
    result = find_result(run)
    if result is None:
        raise CheckpointError(
            f"{run}: neither a committed checkpoint nor a run that has one; `starpo-train resume` "
            "goes on with a run."
        )
    return result


def _advise(whole: Path, damaged: list[Path]) -> str:
    del damaged  # they may stay
    return f"export that one, {whole}"


def _claim(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not empty; export into a new folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: the folder cannot be made ({error.strerror}).") from None


def _convert_weights(source: Path, target: Path, dtype: torch.dtype) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as weights:
        tensors = {name: _cast(weights.get_tensor(name), dtype) for name in weights.keys()}  # noqa: SIM118 - no dict
    save_file(tensors, target, metadata={"format": "pt"})


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _update_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _update_index(folder: Path) -> None:
    """The index of several weight files says how many bytes there are."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    num_bytes = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            num_bytes += sum(weights.get_tensor(name).nbytes for name in weights.keys())  # noqa: SIM118 - no dict
    metadata = json.loads(index.read_text(encoding="utf-8")).get("metadata", {})
    _update_json(index, metadata=metadata | {"total_size": num_bytes})


def _name_as_peft(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`lora.model.x.lora_A.default.weight` -> `base_model.model.model.x.lora_A.weight`."""
    return {
        "base_model.model." + name.removeprefix("lora.").replace(".default.", "."): _cast(
            tensor, dtype
        )
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("lora.")
    }
