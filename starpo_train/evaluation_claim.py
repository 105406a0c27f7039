"""An evaluation -> what its output folder says it holds, so that no two are mixed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from starpo_train.attempts import Attempt
from starpo_train.environments.protocol import Task
from starpo_train.errors import ConfigError, ModelError
from starpo_train.evaluation_file import EvaluateSection
from starpo_train.modelfolder import hash_weights
from starpo_train.wholefile import write_atomically

CLAIM_FILE: Final = "evaluation.json"
REFERENCES_FILE: Final = "references.jsonl"
"""For `starpo-train score --references`."""
TASKS_FILE: Final = "tasks.jsonl"

_IDENTITY: Final = ("policy_id", "split", "seed")
_WEIGHTS: Final = "weights_sha256"


def claim_output(options: EvaluateSection) -> None:
    """Write down whose runs the output folder holds, or check that they are this evaluation's.

    Raises:
        ConfigError: they are another agent's, model's, policy's, split's, seed's or sampling's.
    """
    path = options.output / CLAIM_FILE
    mine = describe_claim(options)
    if not path.exists():
        write_atomically(path, json.dumps(mine, indent=2) + "\n")
        return
    theirs = _read_claim(path)
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise ConfigError(
                f"{options.output}: holds runs with {key} = {theirs.get(key)!r}, not {value!r}; "
                "choose another evaluate.output, or remove the folder"
            )


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: damaged ({error}); remove it to claim the folder anew"
        ) from None
    if not isinstance(claim, dict):
        raise ConfigError(f"{path}: holds no table of settings; remove it to claim the folder anew")
    return claim


def describe_claim(options: EvaluateSection) -> dict[str, Any]:
    """What all runs in one output folder have in common."""
    claim: dict[str, Any] = {key: str(getattr(options, key)) for key in _IDENTITY}
    if options.agent is not None:
        return {"agent": str(options.agent), "model": options.model_name, **claim}
    described = {
        "environment": options.environment,
        "environment_args": options.environment_args,
        "model": options.model_name,
        **claim,
        "sampling": asdict(options.sampling),
        "max_turns": options.max_turns,
    }
    return json.loads(json.dumps(described, default=str))


def claim_environment(options: EvaluateSection, version: str | None) -> None:
    """The same for the version of an environment, which is known once it is loaded.

    Raises:
        ConfigError: the output folder holds runs of another version.
    """
    path = options.output / CLAIM_FILE
    claim = _read_claim(path)
    if claim.setdefault("environment_version", version) != version:
        raise ConfigError(
            f"{options.output}: holds runs of version {claim['environment_version']!r} of the "
            f"environment, which is {version!r} now; choose another evaluate.output"
        )
    write_atomically(path, json.dumps(claim, indent=2) + "\n")


def claim_weights(options: EvaluateSection, *, is_new: bool) -> None:
    """The same for the weights that are served here, whose hash the gate compares with what ships.

    Where runs were finished before hashes were kept, none is written down; where none was, anew.

    Raises:
        ConfigError: the output folder holds runs of other weights, or of weights where none are known now.
    """
    path = options.output / CLAIM_FILE
    claim = _read_claim(path)
    theirs, mine = claim.get(_WEIGHTS), _hash_weights(options.model)
    if is_new:
        write_atomically(path, json.dumps({**claim, _WEIGHTS: mine}, indent=2) + "\n")
    elif theirs not in (None, mine):
        now = "an endpoint, whose are not known" if mine is None else f"sha256 {mine[:12]}..."
        raise ConfigError(
            f"{options.output}: holds runs of other weights than those that would play now (sha256 "
            f"{theirs[:12]}..., now {now}); choose another evaluate.output"
        )


def _hash_weights(model: str | None) -> str | None:
    """None: another server's, or in no form that has a hash."""
    if model is None:
        return None
    try:
        return hash_weights(model)
    except ModelError:
        return None


def read_weights(options: EvaluateSection) -> str | None:
    """Hash of the weights that played; None: another server's, or in no form that has one."""
    return _read_claim(options.output / CLAIM_FILE).get(_WEIGHTS)


def write_tasks(folder: Path, attempts: Sequence[Attempt]) -> None:
    """What an environment says of its tasks -> `tasks.jsonl`, and what is right -> references."""
    tasks = {each.task_id: each.task for each in attempts if isinstance(each.task, Task)}
    _write_lines(
        folder / TASKS_FILE,
        [
            {"task_id": task.id, "cohort": task.cohort, "metadata": dict(task.metadata)}
            for task in tasks.values()
        ],
    )
    _write_lines(
        folder / REFERENCES_FILE,
        [{"task_id": task.id, **task.expected} for task in tasks.values() if task.expected],
    )


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        write_atomically(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
