"""verdict.json + keys -> is it as it was signed, and is what it saw still the same?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starpo_train.errors import ConfigError, DataError, StarpoTrainError
from starpo_train.gate.files import hash_file, identify_checkpoint, identify_dataset
from starpo_train.gate.signing import (
    KEY_FILE_VARIABLE,
    find_signature_fault,
    find_verdict_keys,
)
from starpo_train.gate.verdict import EXIT_CODES, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A verdict whose signature is right."""

    verdict: Verdict
    sentence: str
    key_id: str
    """Of the key that signed it."""
    same: tuple[str, ...]
    """What the verdict saw and is still so."""
    absent: tuple[str, ...]
    """What is not where it was, so that it could not be compared."""

    @property
    def exit_code(self) -> int:
        """That of the verdict: only a PROMOTE that is genuine is 0."""
        return EXIT_CODES[self.verdict]


def verify_verdict(
    path: Path,
    *,
    key_file: Path | None = None,
    checkpoints: Mapping[str, Path] | None = None,
) -> Verification:
    """Check the signature, then every dataset, checkpoint and file it names that is still there.

    `checkpoints` are model folders by role that must be the ones the verdict was given.

    Raises:
        ConfigError: there is no key to check with.
        DataError: no verdict, a signature that is not its own, or something it saw has changed.
    """
    file = path / "verdict.json" if path.is_dir() else path
    keys = find_verdict_keys(key_file)
    if keys is None:
        raise ConfigError(f"no key to verify with; give --key FILE, or set {KEY_FILE_VARIABLE}.")
    record = _read_record(file)
    if fault := find_signature_fault(record, keys):
        raise DataError(f"{file}: {fault}; do not act on it, run the gate again")
    same, absent, changed = _compare_inputs(
        {**record["inputs"], **record.get("also_seen", {})}, checkpoints or {}
    )
    if changed:
        raise DataError(
            f"{file}: the signature is right, but {'; '.join(changed)}; run the gate again"
        )
    return Verification(
        verdict=Verdict(record["verdict"]),
        sentence=record["sentence"],
        key_id=record["signature"].split(":")[1],
        same=tuple(same),
        absent=tuple(absent),
    )


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        Verdict(record["verdict"])
        _ = record["inputs"]["candidate"]["digest"]
    except FileNotFoundError:
        raise DataError(f"{file}: no verdict here; run `starpo-train gate` first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a verdict ({error!r}); run the gate again") from None
    return record


def _compare_inputs(
    inputs: Mapping[str, Any], checkpoints: Mapping[str, Path]
) -> tuple[list[str], list[str], list[str]]:
    """Names of what is the same, not there, and changed."""
    same, absent, changed = [], [], []
    for name, path, expected, identify in _list_inputs(inputs, checkpoints):
        if expected is None:
            changed.append(f"it was made without the {name}")
        elif not path.exists():
            absent.append(f"{name} ({path})")
        else:
            try:
                is_same = identify(path) == expected
            except StarpoTrainError:
                is_same = False
            (same if is_same else changed).append(
                name if is_same else f"the {name} ({path}) is not what it saw"
            )
    return same, absent, changed


def _list_inputs(inputs: Mapping[str, Any], checkpoints: Mapping[str, Path]) -> list[tuple]:
    datasets = {role: inputs[role] for role in ("baseline", "candidate")}
    for kind in ("evidence", "preflight"):
        datasets |= {f"{kind} {name}": value for name, value in inputs.get(kind, {}).items()}
    known = inputs.get("checkpoints", {})
    listed: list[tuple] = [
        (f"{name} dataset", Path(value["path"]), value["digest"], _find_digest)
        for name, value in datasets.items()
    ]
    listed += [
        (
            f"{name} checkpoint",
            checkpoints.get(name, Path(known.get(name, {}).get("path", ""))),
            known.get(name, {}).get("weights_sha256"),
            _find_weights,
        )
        for name in sorted(known.keys() | checkpoints.keys())
    ]
    if inputs.get("ope"):
        listed.append(("ope.json", Path(inputs["ope"]["path"]), inputs["ope"]["sha256"], hash_file))
    return listed


def _find_digest(path: Path) -> str:
    return identify_dataset(path)["digest"]


def _find_weights(path: Path) -> str:
    return identify_checkpoint(path)["weights_sha256"]
