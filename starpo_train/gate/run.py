"""Dataset folders -> verdict.json, the record of looks, the record of releases."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import polars as pl

from starpo_train.dataset import read_manifest, scan_table
from starpo_train.errors import ConfigError, DataError
from starpo_train.gate.decision import decide_release
from starpo_train.gate.evidence import OpeEvidence, read_ope
from starpo_train.gate.files import (
    SUMMARY_FILE,
    hash_file,
    identify_checkpoint,
    identify_code,
    identify_dataset,
    read_played_weights,
)
from starpo_train.gate.looks import (
    Looks,
    accumulate_tasks,
    identify_evaluation,
    read_looks,
    record_tasks,
    require_same_evaluation,
    write_looks,
)
from starpo_train.gate.margins import GateConfig
from starpo_train.gate.pairing import NEEDED_COLUMNS, pair_tasks
from starpo_train.gate.releases import append_release, describe_verdict, list_releases
from starpo_train.gate.signing import find_verdict_keys, identify_verdict, sign_verdict
from starpo_train.gate.verdict import GateDecision
from starpo_train.installed import installed_version
from starpo_train.tomlfile import to_json_dict
from starpo_train.wholefile import write_atomically

VERDICT_FILE = "verdict.json"
VERDICT_SCHEMA_VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateExtras:
    """What a verdict can be given beside the two datasets."""

    preflight: Mapping[str, Path] = field(default_factory=dict)
    """Datasets of an "oracle" and of a "null" agent."""
    ope: Path | None = None
    """What `starpo-train ope` wrote."""
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    """Model folders whose weights' hashes the verdict holds, by role."""
    looks: Path | None = None
    """Record of looks; required for sequential ones."""
    releases: Path | None = None
    """Record of releases to append to."""
    key_file: Path | None = None
    """Keys to sign with; without it those of the environment, if any."""


def run_gate(
    *,
    baseline: Path,
    candidate: Path,
    evidence: Mapping[str, Path],
    config: GateConfig,
    output: Path,
    extras: GateExtras | None = None,
) -> GateDecision:
    """Dataset folders -> decision, written to `verdict.json`.

    `output` is a folder, or a file name ending in `.json`; it is written in one piece. The file
    holds the decision, the configuration and the hash of everything that was read, and is signed
    when there is a key.

    Raises:
        ConfigError: `output` cannot be written, or a key or the record of looks does not fit.
        DataError: a dataset is missing or unreadable, both are the same one, or the two cannot be
            compared.
        ModelError: a checkpoint is no model folder.
    """
    extras = extras or GateExtras()
    target = _check_output(output)
    keys = find_verdict_keys(extras.key_file)
    if config.looks == "sequential" and extras.looks is None:
        raise ConfigError('gate.looks = "sequential": give --looks FILE to keep earlier looks in.')
    if extras.releases is not None:
        list_releases(extras.releases)  # one that cannot be read is an error before the verdict
    _refuse_same_dataset(baseline, candidate)
    for role in extras.checkpoints:
        if role not in ("baseline", "candidate", *evidence):
            known = ", ".join(("baseline", "candidate", *evidence))
            raise ConfigError(f"--checkpoint {role}=...: no such role; there are {known}.")
    datasets = {"baseline": baseline, "candidate": candidate, **evidence}
    rows = {"candidate": read_rows(candidate), "baseline": read_rows(baseline)}
    inputs = _identify_inputs(baseline, candidate, evidence, extras)
    unknown = _require_evaluated(inputs["checkpoints"], datasets)
    evaluation = _name_evaluation(rows, {"candidate": candidate, "baseline": baseline})
    this = _describe_this_look(inputs, config)
    earlier = _find_earlier(extras.looks, evaluation, this, config=config)
    decision = decide_release(
        rows["candidate"],
        rows["baseline"],
        config=config,
        evidence={name: read_rows(path) for name, path in evidence.items()},
        preflight={agent: read_rows(path) for agent, path in extras.preflight.items()},
        ope=None if extras.ope is None else _read_ope(extras.ope, inputs),
        earlier=earlier,
    )
    decision = replace(decision, notes=(*decision.notes, *unknown))
    if extras.looks is None:
        decision = _note_earlier_verdict(decision, target, evaluation, this)
    elif not decision.faults:  # before the verdict can be seen
        looks = earlier or Looks(
            evaluation=evaluation, alpha=config.alpha, success_threshold=config.success_threshold
        )
        this |= {"verdict": decision.verdict.value, "tasks": decision.accounting["tasks_paired"]}
        _record_look(extras.looks, looks, rows, this, config=config)
    record = {
        "schema_version": VERDICT_SCHEMA_VERSION,
        "created": _now(),
        "starpo_version": installed_version(),
        "code": identify_code(),
        **decision.to_dict(),
        "config": to_json_dict(config),
        "evaluation": evaluation,
        "inputs": {role: inputs.pop(role) for role in ("baseline", "candidate", "evidence")},
        "also_seen": inputs,
    }
    record = json.loads(json.dumps(record, allow_nan=False))  # as a reader will have it
    if keys is not None:
        record["signature"] = sign_verdict(record, keys)
    write_atomically(target, json.dumps(record, indent=2, allow_nan=False) + "\n")
    if extras.releases is not None:
        append_release(extras.releases, describe_verdict(record, identify_verdict(record), target))
    return decision


def _identify_inputs(
    baseline: Path, candidate: Path, evidence: Mapping[str, Path], extras: GateExtras
) -> dict[str, Any]:
    """Everything the verdict is made from -> what pins it."""
    return {
        "baseline": identify_dataset(baseline),
        "candidate": identify_dataset(candidate),
        "evidence": {name: identify_dataset(path) for name, path in evidence.items()},
        "preflight": {name: identify_dataset(path) for name, path in extras.preflight.items()},
        "checkpoints": {name: identify_checkpoint(p) for name, p in extras.checkpoints.items()},
        "ope": None
        if extras.ope is None
        else {"path": str(extras.ope), "sha256": read_ope(extras.ope).sha256},
        "looks": None
        if extras.looks is None
        else {
            "path": str(extras.looks),
            "sha256_before": hash_file(extras.looks) if extras.looks.is_file() else None,
        },
    }


def _require_evaluated(
    checkpoints: Mapping[str, Mapping[str, Any]], datasets: Mapping[str, Path]
) -> list[str]:
    """Refuse a checkpoint that is not what played; notes where that is not recorded.

    Raises:
        ConfigError: the summary beside a dataset names other weights.
    """
    notes = []
    for role, checkpoint in checkpoints.items():
        played = read_played_weights(datasets[role])
        if played is None:
            notes.append(
                f"Nothing beside {datasets[role]} says which weights played: that they are those of "
                f"--checkpoint {role}={checkpoint['path']} is not checked."
            )
        elif played != checkpoint["weights_sha256"]:
            raise ConfigError(
                f"--checkpoint {role}={checkpoint['path']}: its weights (sha256 "
                f"{checkpoint['weights_sha256'][:12]}...) are not those that played "
                f"{datasets[role]} ({played[:12]}..., says the {SUMMARY_FILE} beside it); evaluate what "
                "is to ship."
            )
    return notes


def _read_ope(path: Path, inputs: dict[str, Any]) -> OpeEvidence:
    """Off-policy evidence, with a doubt more when it is about other weights than the candidate's."""
    evidence = read_ope(path)
    candidate = inputs["checkpoints"].get("candidate")
    if candidate is None or evidence.weights_sha256 == candidate["weights_sha256"]:
        return evidence
    return replace(
        evidence,
        outcome="inconclusive",
        doubts=("it is about other weights than the candidate's", *evidence.doubts),
    )


def _name_evaluation(rows: Mapping[str, pl.DataFrame], paths: Mapping[str, Path]) -> dict[str, Any]:
    """Who is compared; a policy without a name is known by its dataset."""
    evaluation = identify_evaluation(rows["candidate"], rows["baseline"])
    for role, names in evaluation.items():
        if not names["policy_id"]:
            names["dataset"] = str(paths[role].resolve())
    return evaluation


def _describe_this_look(inputs: dict[str, Any], config: GateConfig) -> dict[str, Any]:
    settings = json.dumps(to_json_dict(config), sort_keys=True, default=str).encode()
    return {
        "created": _now(),
        "mode": config.looks,
        "config_blake2b": blake2b(settings, digest_size=16).hexdigest(),
        **{
            role: inputs[role]["digest"] or inputs[role]["manifest_blake2b"]
            for role in ("candidate", "baseline")
        },
    }


def _is_same_look(look: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same data and settings: a repetition, which gives the same verdict."""
    names = ("mode", "config_blake2b", "candidate", "baseline")
    return all(look.get(name) == other.get(name) for name in names)


def _find_earlier(
    path: Path | None, evaluation: dict[str, Any], this: dict[str, Any], *, config: GateConfig
) -> Looks | None:
    """What was looked at before this look; a repetition of the latest one is that one again."""
    looks = None if path is None else read_looks(path)
    if path is None or looks is None:
        return None
    require_same_evaluation(looks, evaluation, config, path)
    repeated = [_is_same_look(look, this) for look in looks.looks]
    if config.looks == "once" and repeated and repeated[0]:
        return replace(looks, looks=())
    if repeated and repeated[-1]:
        return replace(looks, looks=looks.looks[:-1])
    return looks


def _record_look(
    path: Path,
    looks: Looks,
    rows: Mapping[str, pl.DataFrame],
    this: dict[str, Any],
    *,
    config: GateConfig,
) -> None:
    """Add this look and its new tasks to the record, unless it is there."""
    known = read_looks(path)
    if known is not None and len(known.looks) > len(looks.looks):  # a repetition
        return
    paired = pair_tasks(
        rows["candidate"], rows["baseline"], success_threshold=config.success_threshold
    )
    total = accumulate_tasks(paired, looks.tasks).paired
    write_looks(path, replace(looks, looks=(*looks.looks, this), tasks=tuple(record_tasks(total))))


def _note_earlier_verdict(
    decision: GateDecision, target: Path, evaluation: dict[str, Any], this: dict[str, Any]
) -> GateDecision:
    """Say so when the verdict that is replaced was about the same policies on other data."""
    try:
        record = json.loads(target.read_text(encoding="utf-8"))
        inputs = record["inputs"]
        was = [inputs[role]["digest"] or inputs[role]["manifest_blake2b"] for role in evaluation]
        is_same = record["evaluation"] == evaluation
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return decision
    if not is_same or was == [this[role] for role in evaluation]:
        return decision
    note = (
        f"{target} held an earlier verdict about the same policies: the bounds hold for a single "
        'look. Record looks with --looks FILE, and several with gate.looks = "sequential".'
    )
    return replace(decision, notes=(note, *decision.notes))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_output(output: Path) -> Path:
    """The file the verdict goes to; refused before anything is computed when it cannot."""
    is_file = output.suffix == ".json"
    target = output if is_file else output / VERDICT_FILE
    folder = target.parent
    blocking = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    if blocking.exists() and not blocking.is_dir():
        raise ConfigError(
            f"--output {output}: {blocking} is a file; give a folder, or a name ending in .json."
        )
    if target.is_dir():
        raise ConfigError(f"--output {output}: {target} is a folder; give another output.")
    return target


def _refuse_same_dataset(baseline: Path, candidate: Path) -> None:
    """A policy against itself is never worse: such a PROMOTE would say nothing."""
    digests = [read_manifest(path).digest for path in (baseline, candidate)]
    same_content = digests[0] == digests[1] != ""
    if same_content or baseline.resolve() == candidate.resolve():
        raise DataError(
            f"baseline {baseline} and candidate {candidate} are the same dataset (digest "
            f"{digests[0] or 'unknown'}); give the evaluations of two policies."
        )


def read_rows(path: Path) -> pl.DataFrame:
    """Dataset folder -> what a comparison reads of its trajectories.

    Raises:
        DataError: no dataset, or an empty one.
    """
    table = scan_table(path, "trajectories")
    wanted = [*NEEDED_COLUMNS]
    if "attempt" in table.collect_schema():  # tells what was played again
        wanted.append("attempt")
    rows = table.select(wanted).collect()
    if rows.is_empty():
        raise DataError(f"{path}: the dataset holds no trajectory; evaluate the policy first")
    return rows
