"""Folders and files -> what pins them."""

import hashlib
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from starpo_trace.schema import MANIFEST_FILE
from starpo_train.dataset import read_manifest
from starpo_train.installed import installed_version
from starpo_train.modelfolder import hash_file, hash_weights

SUMMARY_FILE = "summary.json"
"""What `starpo-train evaluate` writes beside its dataset."""


def identify_dataset(path: Path) -> dict[str, Any]:
    """Dataset folder -> what pins it: path, its digest, its manifest's hash, table versions."""
    manifest = read_manifest(path)
    data = (path / MANIFEST_FILE).read_bytes()
    return {
        "path": str(path),
        "digest": manifest.digest,
        "manifest_blake2b": blake2b(data, digest_size=16).hexdigest(),
        "table_versions": manifest.versions,
    }


def identify_checkpoint(path: Path) -> dict[str, Any]:
    """Model folder -> its path and the SHA-256 of its weights.

    Raises:
        ModelError: there is no such model, or it has no weights.
    """
    return {"path": str(path), "weights_sha256": hash_weights(str(path))}


def read_played_weights(dataset: Path) -> str | None:
    """SHA-256 of the weights that an evaluation's dataset was played with, if its summary has it."""
    try:
        summary = json.loads((dataset.resolve().parent / SUMMARY_FILE).read_text(encoding="utf-8"))
        played = summary["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(played) if played else None


def identify_code() -> dict[str, Any]:
    """Version of starpo, and the SHA-256 of the files that decide."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in (folder.parent / "stats.py", *sorted(folder.glob("*.py"))):
        digest.update(f"{file.name} {hash_file(file)}\n".encode())
    return {"version": installed_version(), "sha256": digest.hexdigest()}
