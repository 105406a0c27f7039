"""Trainer -> a fresh checkpoint folder that loads only when it is whole.

`COMMIT` is written last and holds the SHA-256 of every other file. A folder without it is torn; a
folder whose files differ from it was tampered with. Both are refused before anything is parsed,
and nothing is ever unpickled: weights and optimizer are safetensors, the rest is JSON. Of a run on
several ranks, rank 0 writes the weights and each rank a file with its slices of the optimizer.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from starpo_train.errors import CheckpointError, RankError
from starpo_train.modelfolder import (
    COMMIT_FILE,
    STATE_FOLDER,
    hash_file,
    list_files,
    read_commit,
    render_commit,
)
from starpo_train.ranks import ALONE, Ranks
from starpo_train.slices import SavedTensors, Slice, name_files, save_slices

_VALUES_FILE = f"{STATE_FOLDER}/state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    """Folder; transformers and vLLM load it as it is."""
    step: int
    tensors: Mapping[str, Tensor]
    """Optimizer moments and whatever else the trainer needs to go on; read when asked for."""
    values: dict[str, Any]
    """Step, epoch and the like."""
    lineage: dict[str, Any]
    """Dataset digest and versions, configuration, code version."""


def write_checkpoint(
    folder: Path,
    *,
    save_model: Callable[[Path], None],
    tensors: Mapping[str, Tensor | Slice],
    values: dict[str, Any],
    lineage: dict[str, Any],
    ranks: Ranks = ALONE,
) -> Path:
    """Write and commit `folder`. It must be new, or the uncommitted rest of a killed run.

    Every rank calls it, with the slices that it holds; `save_model` is called on rank 0.

    Raises:
        CheckpointError: already committed, or it cannot be written; then nothing of it is left.
        RankError: another rank could not write its part.
    """
    if (folder / COMMIT_FILE).exists():
        raise CheckpointError(f"{folder}: already committed; checkpoints are never overwritten.")
    earlier = list_checkpoints(folder.parent)

    def write_part() -> dict[str, Any]:
        if ranks.is_first:
            save_model(folder)
        file = folder / STATE_FOLDER / name_files(ranks.size)[ranks.rank]
        rows = save_slices(file, tensors, is_first=ranks.is_first)
        return {"rows": rows, "entry": _seal(file)}

    try:
        ranks.share(lambda: _clear(folder))
        parts = ranks.gather(ranks.agree(write_part))
        ranks.share(lambda: _commit(folder, parts, values=values, lineage=lineage))
    except (OSError, SafetensorError, RankError) as error:  # such as a full disk
        if ranks.is_first:
            remove_checkpoint(folder)
        if isinstance(error, RankError):
            raise
        kept = f"{earlier[-1].name} stays the newest one" if earlier else "none was written before"
        raise CheckpointError(
            f"{folder}: the checkpoint cannot be written ({' '.join(str(error).split())}); {kept}. "
            "Free some disk space, then `starpo-train resume` the run."
        ) from error
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint and open the trainer's part of it.

    Raises:
        CheckpointError: as `read_commit`.
    """
    commit = read_commit(folder)
    values = read_values(folder)
    layout = values.pop("layout", {"files": name_files(1), "rows": {}})
    files = [folder / STATE_FOLDER / name for name in layout["files"]]
    return Checkpoint(
        path=folder,
        step=int(commit["step"]),
        tensors=SavedTensors(files, layout["rows"]),
        values=values,
        lineage=commit["lineage"],
    )


def read_values(folder: Path) -> dict[str, Any]:
    """A checkpoint's numbers beside its tensors; not verified."""
    return json.loads((folder / _VALUES_FILE).read_text(encoding="utf-8"))


@contextmanager
def advise_intact(folder: Path, advise: Callable[[Path, list[Path]], str]) -> Iterator[None]:
    """Let the error about a run's damaged checkpoint name the newest one before it that is whole.

    `advise` tells how to go on from that one, given it and the damaged ones after it.

    Raises:
        CheckpointError: what the body raised, with that advice.
    """
    try:
        yield
    except CheckpointError as error:
        earlier = list_checkpoints(folder.parent)
        if folder not in earlier:  # a checkpoint's or an export's folder that is in no run
            raise
        place = earlier.index(folder)
        whole = next((i for i in reversed(range(place)) if _is_whole(earlier[i])), None)
        advice = "no checkpoint before it is whole; start a new run"
        if whole is not None:
            how = advise(earlier[whole], earlier[whole + 1 : place + 1])
            advice = f"the newest whole one before it is {earlier[whole].name}: {how}"
        told = str(error).removesuffix("; use another checkpoint.")
        raise CheckpointError(f"{told}; {advice}.") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints of a run's `checkpoints` folder, oldest first; not verified.

    Folders with other names, such as a copy that someone keeps there, are none.
    """
    steps = {
        int(path.parent.name.removeprefix("step_")): path.parent
        for path in folder.glob(f"step_*/{COMMIT_FILE}")
        if re.fullmatch(r"step_\d{6,}", path.parent.name)
    }
    return [steps[step] for step in sorted(steps)]


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; uncommitted first, so that a kill cannot leave half of it valid."""
    (folder / COMMIT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        read_commit(folder)
    except CheckpointError:
        return False
    return True


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / STATE_FOLDER).mkdir(parents=True)


def _commit(
    folder: Path,
    parts: list[dict[str, Any]],
    *,
    values: dict[str, Any],
    lineage: dict[str, Any],
) -> None:
    """Rank 0, when every rank has written its part: what is where, and that it is whole."""
    names = name_files(len(parts))
    sliced = sorted({name for part in parts for name in part["rows"]})
    rows = {name: [part["rows"].get(name) for part in parts] for name in sliced}
    layout = {"layout": {"files": names, "rows": rows}}
    (folder / _VALUES_FILE).write_text(json.dumps(values | layout, indent=1), encoding="utf-8")
    sealed = {f"{STATE_FOLDER}/{name}": p["entry"] for name, p in zip(names, parts, strict=True)}
    commit_folder(folder, step=values["step"], lineage=lineage, sealed=sealed)


def commit_folder(
    folder: Path,
    *,
    step: int,
    lineage: dict[str, Any],
    sealed: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Put every file of a folder on disk, and its COMMIT after them.

    `sealed` are entries of files that other processes have written.

    Raises:
        OSError: a sealed file is not there, or not as long as it was.
    """
    sealed = dict(sealed or {})
    plain = next(folder.glob("*config.json"), None)
    files = {}
    for file in list_files(folder):
        name = file.relative_to(folder).as_posix()
        if plain is not None and file.suffix == ".safetensors":  # written for one user only
            file.chmod(plain.stat().st_mode)
        files[name] = sealed.pop(name, None) or _seal(file)
        if files[name]["bytes"] != file.stat().st_size:
            sealed[name] = files[name]
    if sealed:
        raise OSError(
            f"rank 0 does not see {', '.join(sealed)} as it was written; run.output must be a "
            "folder that all machines share"
        )
    commit = {"step": step, "files": files, "lineage": lineage}
    pending = folder / f"{COMMIT_FILE}.tmp"
    pending.write_text(render_commit(commit), encoding="utf-8")
    _sync(pending)
    pending.rename(folder / COMMIT_FILE)
    for directory in (*folder.glob("*/"), folder, folder.parent):
        _sync(directory)


def _seal(file: Path) -> dict[str, Any]:
    """Put a file on disk; its entry in COMMIT."""
    _sync(file)
    return {"sha256": hash_file(file), "bytes": file.stat().st_size}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
