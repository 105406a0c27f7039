"""State spans (whole values and merge patches) -> whole values.

Merge patch: RFC 7396. Each patch is checked against the recorded hash of its result.
"""

from hashlib import blake2b
from typing import Any

import polars as pl

from starpo_trace.mergepatch import apply_merge_patch, dump_canonical, load_json
from starpo_trace.messages import dump_json

_REJECTED_SCHEMA = {
    "row": pl.Int64,
    "trajectory_id": pl.String,
    "source": pl.String,
    "trace_id": pl.String,
    "span_id": pl.String,
    "name": pl.String,
    "scope": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}


def apply_states(states: pl.DataFrame, spans: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Canonical states and spans -> rows of the table `states`, and rejected spans.

    Reasons: `state_base_missing`, `state_mismatch`, `state_not_json`.
    """
    joined = states.join(
        spans.select(
            "row", "trajectory_id", "step", "start_ns", "source", "trace_id", "span_id", "scope"
        ),
        on="row",
        how="inner",
    ).sort("trajectory_id", "step", "start_ns", "trace_id", "span_id")
    known: dict[tuple[str, str], Any] = {}
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row in joined.iter_rows(named=True):
        value, reason = _restore_value(row, known)
        if reason is not None:
            rejected.append({**row, "reason": reason, "detail": f"state {row['name']}"})
            continue
        if row["hash"] is not None:
            known[row["trajectory_id"], row["hash"]] = value
        text = row["value"] if row["value"] is not None else dump_json(value)
        kept.append({**row, "value": text, "time_ns": row["start_ns"]})
    table = pl.DataFrame(
        kept,
        schema={
            "trajectory_id": pl.String,
            "step": pl.Int64,
            "name": pl.String,
            "hash": pl.String,
            "value": pl.String,
            "time_ns": pl.Int64,
        },
    )
    return table, pl.DataFrame(rejected, schema=_REJECTED_SCHEMA)


def hash_state(value: Any) -> str:
    """JSON value -> hash of its canonical form (sorted keys, no spaces), 16 bytes as hex."""
    return blake2b(dump_canonical(value), digest_size=16).hexdigest()


def _restore_value(
    row: dict[str, Any], known: dict[tuple[str, str], Any]
) -> tuple[Any, str | None]:
    """Row of a state -> its whole value, or the reason why there is none."""
    try:
        value = load_json(row["value"] if row["value"] is not None else row["diff"])
        if row["value"] is not None:
            return value, None
        base = (row["trajectory_id"], row["base"])
        if base not in known:
            return None, "state_base_missing"
        value = apply_merge_patch(known[base], value)
        return value, None if hash_state(value) == row["hash"] else "state_mismatch"
    except (ValueError, RecursionError):
        return None, "state_not_json"
