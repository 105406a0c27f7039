"""Model name -> a folder that is there and whole.

A folder that this package wrote is loaded only as it was committed: `COMMIT` holds the SHA-256 of
every other file. Nothing here touches the network.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from starpo_train.errors import CheckpointError, ModelError

COMMIT_FILE: Final = "COMMIT"
STATE_FOLDER: Final = "trainer"
"""Subfolder, so that engines that read every *.safetensors of a model folder skip it."""


def require_model(name: str | Path, *, where: str = "model") -> None:
    """Refuse a model that is not on this machine, and a checkpoint of ours that is not whole.

    `where` is the setting or argument that named it, for errors.

    Raises:
        ModelError: no such folder, and no copy of that name in the hub's cache.
        CheckpointError: a checkpoint that was not committed, or changed since.
    """
    folder = Path(name)
    if not folder.is_dir():
        if is_cached_model(str(name)):
            return
        raise ModelError(
            f"{where} = {str(name)!r}: no such model folder ({folder.expanduser().resolve()}); "
            "give the folder of a transformers model."
        )
    if (folder / COMMIT_FILE).exists():
        read_commit(folder)
    elif (folder / STATE_FOLDER).is_dir():
        raise CheckpointError(
            f"{folder}: an uncommitted checkpoint ({COMMIT_FILE} is missing): its writing was "
            "interrupted; use another checkpoint, or `starpo-train resume` its run."
        )


def load_tokenizer(name: str, *, where: str = "model") -> Any:
    """The tokenizer of a model folder, or of a model in the hub's local cache.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if not Path(name).is_dir() and not is_cached_model(name):
        require_model(name, where=where)
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{where} = {name!r}: its tokenizer cannot be loaded ({' '.join(str(error).split())})."
        ) from error


def is_cached_model(name: str) -> bool:
    """Whether the hub's local cache holds a model of that name; asks no network."""
    return _find_cached_model(name) is not None


def find_model_folder(name: str) -> Path | None:
    """Folder of a model that is named by its path or by its name in the hub's local cache."""
    return Path(name) if Path(name).is_dir() else _find_cached_model(name)


def _find_cached_model(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not in the form of a hub name
        return None
    return Path(config).parent if isinstance(config, str) else None


def resolve_model(name: str, *, folder: Path) -> str:
    """Model of a configuration file in `folder`: a hub name stays, a path becomes absolute."""
    path = (folder / Path(name).expanduser()).resolve()
    return name if not path.exists() and is_cached_model(name) else str(path)


def read_commit(folder: Path) -> dict[str, Any]:
    """Verify a checkpoint folder against its COMMIT file and return that file's content.

    Raises:
        CheckpointError: not committed, or any file missing, changed or added since.
    """
    file = folder / COMMIT_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a committed checkpoint ({COMMIT_FILE} is missing).")
    try:
        text = file.read_text(encoding="utf-8")
        commit = json.loads(text)
        if commit.get("format", 1) >= 2 or "sha256" in commit:  # before, it had no hash of itself
            _require_own_hash(commit, text)
        expected = {name: str(entry["sha256"]) for name, entry in commit["files"].items()}
        int(commit["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r}); use another checkpoint.") from None
    present = {path.relative_to(folder).as_posix() for path in list_files(folder)} - {COMMIT_FILE}
    for name in sorted(expected.keys() | present):
        if name not in present:
            fault = "is missing"
        elif name not in expected:
            fault = "was added after the commit"
        elif hash_file(folder / name) != expected[name]:
            fault = "does not match its SHA-256"
        else:
            continue
        raise CheckpointError(f"{folder / name} {fault}; use another checkpoint.")
    return commit


def render_commit(values: dict[str, Any]) -> str:
    """Content of a COMMIT file, which ends with the hash of what stands before."""
    values = {"format": 2, **values}
    plain = json.dumps(values, indent=1, default=str)
    return json.dumps(
        values | {"sha256": hashlib.sha256(plain.encode()).hexdigest()}, indent=1, default=str
    )


def _require_own_hash(commit: dict[str, Any], text: str) -> None:
    values = {key: value for key, value in commit.items() if key != "sha256"}
    if render_commit(values) != text:
        raise ValueError("it does not match its own SHA-256")


def list_files(folder: Path) -> list[Path]:
    """Every file under a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(name: str) -> str:
    """SHA-256 over the safetensors files of a model, by name: what identifies its weights.

    Raises:
        ModelError: there is no such model, or it has no such file.
    """
    folder = find_model_folder(name)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if not files:
        raise ModelError(f"{name!r}: holds no *.safetensors whose hash would identify its weights.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {hash_file(file)}\n".encode())
    return digest.hexdigest()


def was_trained_on(name: str, digest: str, split: str) -> bool:
    """Whether a checkpoint's own record names this dataset and split."""
    if digest == "" or not (Path(name) / COMMIT_FILE).is_file():
        return False
    lineage = read_commit(Path(name)).get("lineage", {})
    trained_split = lineage.get("config", {}).get("data", {}).get("split")
    return lineage.get("dataset", {}).get("digest") == digest and trained_split == split
