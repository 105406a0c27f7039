"""Trainer -> a fresh checkpoint folder that loads only when it is whole.

`COMMIT` is written last and holds the SHA-256 of every other file. A folder without it is torn; a
folder whose files differ from it was tampered with. Both are refused before anything is parsed,
and nothing is ever unpickled: weights and optimizer are safetensors, the rest is JSON.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from starpo_train.errors import CheckpointError

COMMIT_FILE: Final = "COMMIT"
STATE_FOLDER: Final = "trainer"
"""Subfolder, so that engines that read every *.safetensors of a model folder skip it."""
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
    """Write and commit `folder`. It must be new, or the uncommitted rest of a killed run."""
    from safetensors.torch import save_file

    if (folder / COMMIT_FILE).exists():
        raise CheckpointError(f"{folder}: already committed; checkpoints are never overwritten.")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / STATE_FOLDER).mkdir(parents=True)
    save_model(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _TENSORS_FILE
    )
    (folder / _VALUES_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
    files = {}
    for file in _list_files(folder):
        _sync(file)
        files[file.relative_to(folder).as_posix()] = {
            "sha256": _hash_file(file),
            "bytes": file.stat().st_size,
        }
    commit = {"format": 1, "step": values["step"], "files": files, "lineage": lineage}
    pending = folder / f"{COMMIT_FILE}.tmp"
    pending.write_text(json.dumps(commit, indent=1, default=str), encoding="utf-8")
    _sync(pending)
    pending.rename(folder / COMMIT_FILE)
    for directory in (folder / STATE_FOLDER, folder, folder.parent):
        _sync(directory)
    return folder


def read_commit(folder: Path) -> dict[str, Any]:
    """Verify a checkpoint folder against its COMMIT file and return that file's content.

    Raises:
        CheckpointError: not committed, or any file missing, changed or added since.
    """
    file = folder / COMMIT_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a committed checkpoint ({COMMIT_FILE} is missing).")
    try:
        commit = json.loads(file.read_text(encoding="utf-8"))
        expected = {name: str(entry["sha256"]) for name, entry in commit["files"].items()}
        int(commit["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r}); use another checkpoint.") from None
    present = {path.relative_to(folder).as_posix() for path in _list_files(folder)} - {COMMIT_FILE}
    for name in sorted(expected.keys() | present):
        if name not in present:
            fault = "is missing"
        elif name not in expected:
            fault = "was added after the commit"
        elif _hash_file(folder / name) != expected[name]:
            fault = "does not match its SHA-256"
        else:
            continue
        raise CheckpointError(f"{folder / name} {fault}; use another checkpoint.")
    return commit


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


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
