"""Rewards with the trajectory and task they joined -> whether their signatures hold."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from starpo_trace.signing import Keyring, SignedReward, find_signature_fault, read_key_id

_SCHEMA = {"signature": pl.String, "key_id": pl.String, "signature_fault": pl.String}


def check_signatures(rewards: pl.DataFrame, keyring: Keyring | None) -> pl.DataFrame:
    """Rewards -> with `signature` (valid | invalid | missing | unchecked), its key and its fault.

    Args:
        rewards: with `trajectory_id` and `task_id` of the trajectory that each joined, and whether
            its link points to another step than it names (`is_moved`).
        keyring: keys to check with; without any, signatures are `unchecked`.
    """
    checked = [_check_reward(row, keyring) for row in rewards.iter_rows(named=True)]
    return rewards.with_columns(
        pl.Series(name, [row[i] for row in checked], dtype=kind)
        for i, (name, kind) in enumerate(_SCHEMA.items())
    )


def _check_reward(
    row: Mapping[str, Any], keyring: Keyring | None
) -> tuple[str, str | None, str | None]:
    signature = row["signature"]
    if signature is None:
        return "missing", None, None
    key_id = read_key_id(signature)
    if keyring is None:
        return "unchecked", key_id, None
    fault = _find_fault(row, signature, keyring)
    return "valid" if fault is None else "invalid", key_id, fault


def _find_fault(row: Mapping[str, Any], signature: str, keyring: Keyring) -> str | None:
    if row["value"] is None or row["signed_ns"] is None:
        return "the signature does not say when it was made"
    reward = SignedReward(
        trajectory_id=row["trajectory_id"],
        task_id=row["recorded_task_id"],
        reward_id=row["reward_id"],
        name=row["name"],
        value=row["value"],
        scope=row["scope"],
        step=row["recorded_step"],
        kind=row["kind"],
        source=row["source"],
        signed_ns=row["signed_ns"],
        verifier_digest=row["verifier_digest"],
    )
    fault = find_signature_fault(reward, signature, keyring)
    if fault is None and row["recorded_task_id"] != row["task_id"]:
        signed, own = (
            "no task" if task is None else f"task {task}"
            for task in (row["recorded_task_id"], row["task_id"])
        )
        fault = f"signed for {signed}, but the trajectory is of {own}"
    if fault is None and row["is_moved"]:
        step = "no step" if row["named_step"] is None else f"step {row['named_step']}"
        fault = f"signed for {step}, but linked to step {row['target_step']}"
    return fault
