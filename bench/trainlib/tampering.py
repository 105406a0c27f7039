"""Checkpoints with something changed -> which are refused, and whether anything was parsed first."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from starpo_train.checkpoint import read_checkpoint
from starpo_train.config import ModelSection
from starpo_train.errors import CheckpointError
from starpo_train.model import load_policy
from starpo_train.modelfolder import COMMIT_FILE, list_files

Change = Callable[[Path], None]
"""Takes a copy of the checkpoint's folder."""


def measure_tampering(checkpoint: Path, workspace: Path) -> dict[str, Any]:
    """Change a copy in every way, then load it as `resume` and as `serve` or `run` do."""
    parsed: list[str] = []
    unpickled: list[str] = []
    sys.addaudithook(lambda event, _: unpickled.append(event) if "pickle" in event else None)
    loads = {
        "resume": read_checkpoint,
        "model": lambda folder: load_policy(ModelSection(path=str(folder), device="cpu")),
    }
    with watch_parsers(parsed):
        for load in loads.values():
            load(checkpoint)
        control = len(parsed)
        parsed.clear()
        unpickled.clear()
        num_refused, accepted = 0, []
        changes = list(list_changes(checkpoint))
        for name, change in changes:
            shutil.rmtree(workspace, ignore_errors=True)
            shutil.copytree(checkpoint, workspace)
            change(workspace)
            for way, load in loads.items():
                try:
                    load(workspace)
                except CheckpointError:
                    num_refused += 1
                else:
                    accepted.append(f"{name} ({way})")
    return {
        "changes": len(changes),
        "tampered": len(changes) * len(loads),
        "refused": num_refused,
        "accepted": accepted,
        "parsed_before_refusing": len(parsed) + len(unpickled),
        "parsed_in_a_good_one": control,
    }


def list_changes(checkpoint: Path) -> Iterator[tuple[str, Change]]:
    """Name and change."""
    for file in list_files(checkpoint):
        name = file.relative_to(checkpoint).as_posix()
        size = file.stat().st_size
        for at in sorted({0, size // 2, size - 1}):
            yield f"{name}: byte {at} flipped", lambda f, n=name, at=at: flip(f / n, at)
        yield f"{name}: cut short", lambda f, n=name: cut(f / n)
        yield f"{name}: emptied", lambda f, n=name: (f / n).write_bytes(b"")
        if name != COMMIT_FILE:
            yield f"{name}: removed", lambda f, n=name: (f / n).unlink()
    for at in range((checkpoint / COMMIT_FILE).stat().st_size):
        if at % 7 == 0:  # a share of them: each is hashed again, twice
            yield f"COMMIT: byte {at} flipped", lambda f, at=at: flip(f / COMMIT_FILE, at)
    yield "a pickle added", lambda f: (f / "adapter_model.bin").write_bytes(make_pickle())
    yield "a pickle added deep", lambda f: (f / "trainer" / "optim.pt").write_bytes(make_pickle())
    yield "weights added", lambda f: shutil.copy(f / "model.safetensors", f / "model-2.safetensors")
    yield "COMMIT: another step", lambda f: edit(f, lambda commit: commit.update(step=1))
    yield (
        "COMMIT: another dataset",
        lambda f: edit(f, lambda commit: commit["lineage"]["dataset"].update(digest="other")),
    )
    yield (
        "COMMIT: an entry less",
        lambda f: edit(f, lambda commit: commit["files"].pop("config.json")),
    )


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / COMMIT_FILE
    commit = json.loads(file.read_text())
    change(commit)
    file.write_text(json.dumps(commit, indent=1))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def make_pickle() -> bytes:
    return pickle.dumps(Payload())


@contextmanager
def watch_parsers(parsed: list[str]) -> Iterator[None]:
    """Note each call of what opens safetensors files; the real functions still run."""
    import transformers.modeling_utils as modeling

    places = [(safetensors, "safe_open"), (safetensors.torch, "load_file")]
    places += [(module, "safe_open") for module in (safetensors.torch, modeling)]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]

    def note(original: Any, name: str) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            parsed.append(name)
            return original(*arguments, **options)

        return called

    for owner, name, original in kept:
        setattr(owner, name, note(original, name))
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)
