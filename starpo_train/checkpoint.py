"""Trainer -> a fresh checkpoint folder that loads only when it is whole.

`COMMIT` is written last and holds the SHA-256 of every other file. A folder without it is torn; a
folder whose files differ from it was tampered with. Both are refused before anything is parsed,
and nothing is ever unpickled: weights and optimizer are safetensors, the rest is JSON.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from starpo_train.errors import CheckpointError
from starpo_train.modelfolder import (
    COMMIT_FILE,
    STATE_FOLDER,
    hash_file,
    list_files,
    read_commit,
    render_commit,
)

_TENSORS_FILE = f"{STATE_FOLDER}/state.safetensors"
_VALUES_FILE = f"{STATE_FOLDER}/state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    """Folder; transformers and vLLM load it as it is."""
    step: int
    tensors: dict[str, Tensor]
    """Optimizer moments and whatever else the trainer needs to go on."""
    values: dict[str, Any]
    """Step, epoch and the like."""
    lineage: dict[str, Any]
    """Dataset digest and versions, configuration, code version."""


def write_checkpoint(
    folder: Path,
    *,
    save_model: Callable[[Path], None],
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    lineage: dict[str, Any],
) -> Path:
    """Write and commit `folder`. It must be new, or the uncommitted rest of a killed run.

    Raises:
        CheckpointError: already committed, or it cannot be written; then nothing of it is left.
    """
    if (folder / COMMIT_FILE).exists():
        raise CheckpointError(f"{folder}: already committed; checkpoints are never overwritten.")
    earlier = list_checkpoints(folder.parent)
    try:
        _write_files(folder, save_model=save_model, tensors=tensors, values=values, lineage=lineage)
    except (OSError, SafetensorError) as error:  # such as a full disk
        remove_checkpoint(folder)
        kept = f"{earlier[-1].name} stays the newest one" if earlier else "none was written before"
        raise CheckpointError(
            f"{folder}: the checkpoint cannot be written ({' '.join(str(error).split())}); {kept}. "
            "Free some disk space, then `starpo-train resume` the run."
        ) from error
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and load the trainer's part of a checkpoint.

    Raises:
        CheckpointError: as `read_commit`.
    """
    from safetensors.torch import load_file

    commit = read_commit(folder)
    return Checkpoint(
        path=folder,
        step=int(commit["step"]),
        tensors=load_file(folder / _TENSORS_FILE),
        values=json.loads((folder / _VALUES_FILE).read_text(encoding="utf-8")),
        lineage=commit["lineage"],
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints of a run's `checkpoints` folder, oldest first; not verified."""
    return sorted(path.parent for path in folder.glob(f"step_*/{COMMIT_FILE}"))


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; uncommitted first, so that a kill cannot leave half of it valid."""
    (folder / COMMIT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _write_files(
    folder: Path,
    *,
    save_model: Callable[[Path], None],
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    lineage: dict[str, Any],
) -> None:
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    (folder / STATE_FOLDER).mkdir(parents=True)
    save_model(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _TENSORS_FILE
    )
    (folder / _VALUES_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
    commit_folder(folder, step=values["step"], lineage=lineage)


def commit_folder(folder: Path, *, step: int, lineage: dict[str, Any]) -> None:
    """Put every file of a folder on disk, and its COMMIT after them."""
    files = {}
    for file in list_files(folder):
        _sync(file)
        files[file.relative_to(folder).as_posix()] = {
            "sha256": hash_file(file),
            "bytes": file.stat().st_size,
        }
    commit = {"step": step, "files": files, "lineage": lineage}
    pending = folder / f"{COMMIT_FILE}.tmp"
    pending.write_text(render_commit(commit), encoding="utf-8")
    _sync(pending)
    pending.rename(folder / COMMIT_FILE)
    for directory in (*folder.glob("*/"), folder, folder.parent):
        _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
