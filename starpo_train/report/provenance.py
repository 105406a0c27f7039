"""Everything a page was made from -> digests and versions by which it can be found again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from starpo_train.gate.files import identify_dataset
from starpo_train.gate.signing import identify_verdict
from starpo_train.report.evidence import JudgeView
from starpo_train.report.inputs import PolicyResult

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One thing and what pins it."""

    title: str
    facts: Facts
    warning: str | None = None


def collect_sources(
    *,
    verdict: dict[str, Any] | None,
    policies: Sequence[PolicyResult],
    dataset: Path | None,
    runs: Sequence[Path],
    judges: Sequence[JudgeView],
) -> list[Source]:
    """The gate, each dataset, each run's checkpoint, each judge."""
    sources = [] if verdict is None else [_pin_verdict(verdict)]
    named = [(f"{policy.name} ({policy.role}): evaluation", policy.dataset) for policy in policies]
    if dataset is not None:
        named.append(("Training dataset", dataset))
    sources += [_pin_dataset(title, path) for title, path in named]
    digest = None if dataset is None else str(identify_dataset(dataset)["digest"])
    sources += [trace_checkpoint(run, digest) for run in runs]
    sources += [_pin_judge(judge) for judge in judges]
    return sources


def trace_checkpoint(run: Path, dataset_digest: str | None) -> Source:
    """Run folder -> lineage of the checkpoint that it ended with, from its COMMIT."""
    title = f"Checkpoint of {run.name}"
    try:
        name = str(json.loads((run / "final.json").read_text("utf-8"))["checkpoint"])
        data = (run / name / "COMMIT").read_bytes()
        lineage = json.loads(data)["lineage"]
        trained, config = lineage["dataset"], lineage["config"]
        facts = (
            ("checkpoint", name),
            ("base model", str(lineage["base_model"])),
            ("trained on", f"{trained['path']}, digest {trained['digest']}"),
            ("algorithm", f"{config['algorithm']['name']}, seed {config['run']['seed']}"),
            ("code", f"starpo {lineage['starpo_version']}"),
            ("configuration", f"sha256 {_hash_json(config)}"),
            ("commit", f"sha256 {sha256(data).hexdigest()}"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        facts = (("checkpoint", "none committed, or it does not say where it comes from"),)
        return Source(title=title, facts=facts)
    is_other = dataset_digest is not None and trained["digest"] != dataset_digest
    warning = "It was trained on another dataset than this page shows." if is_other else None
    return Source(title=title, facts=facts, warning=warning)


def find_strangers(verdict: dict[str, Any] | None, policies: Sequence[PolicyResult]) -> list[str]:
    """Policies whose dataset is not the one that the verdict was made from."""
    inputs = (verdict or {}).get("inputs") or {}
    return [
        policy.name
        for policy in policies
        if policy.role in ("baseline", "candidate")
        and policy.role in inputs
        and inputs[policy.role].get("digest") != identify_dataset(policy.dataset)["digest"]
    ]


def _pin_verdict(verdict: dict[str, Any]) -> Source:
    code = verdict["code"] or {}
    facts = [
        ("decided", str(verdict["created"] or "unknown")),
        ("verdict", f"sha256 {_identify(verdict)}"),
        (
            "code",
            f"starpo {verdict['starpo_version'] or 'unknown'}, sha256 {code.get('sha256', 'unknown')}",
        ),
        ("configuration", f"sha256 {_hash_json(verdict['config'])}"),
    ]
    facts += [
        (role, f"digest {source.get('digest')}")
        for role, source in verdict["inputs"].items()
        if role != "evidence"
    ]
    checkpoints = (verdict["also_seen"] or {}).get("checkpoints") or {}
    facts += [
        (f"{role}'s weights", f"sha256 {found.get('weights_sha256')}")
        for role, found in checkpoints.items()
    ]
    return Source(title="Gate", facts=tuple(facts))


def _pin_dataset(title: str, path: Path) -> Source:
    found = identify_dataset(path)
    versions = ", ".join(f"{table} {number}" for table, number in found["table_versions"].items())
    facts = (
        ("folder", found["path"]),
        ("digest", found["digest"]),
        ("manifest", f"blake2b {found['manifest_blake2b']}"),
        ("table versions", versions),
    )
    return Source(title=title, facts=facts)


def _pin_judge(judge: JudgeView) -> Source:
    facts = (("judge", judge.judge_id), ("judged", f"digest {judge.dataset_digest}"))
    pin = tuple((str(key).replace("_", " "), str(value)) for key, value in judge.pin.items())
    return Source(title=f"Judge: {judge.rubric}", facts=(*facts, *pin))


def _identify(verdict: dict[str, Any]) -> str:
    try:
        return identify_verdict(verdict)
    except ValueError:  # nan, which no verdict of ours has
        return "unknown"


def _hash_json(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
