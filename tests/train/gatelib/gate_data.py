"""Made-up evaluations for the tests of the gate."""

import json
from pathlib import Path

import polars as pl
from deltalake import write_deltalake

from starpo_trace.schema import DATASET_SCHEMA_VERSION

SCHEMA = {
    "task_id": pl.String,
    "policy_id": pl.String,
    "cohort": pl.String,
    "environment_name": pl.String,
    "environment_version": pl.String,
    "reward": pl.Float64,
    "num_steps": pl.Int64,
    "input_tokens": pl.Int64,
    "output_tokens": pl.Int64,
}


def make_rows(rewards_TK, *, policy="p", steps=5, tokens=100, cohorts=None) -> pl.DataFrame:
    """One row per attempt; `rewards_TK[t]` are the rewards of task t (None: missing)."""
    rows = []
    for task, rewards in enumerate(rewards_TK):
        for attempt, reward in enumerate(rewards):
            rows.append(
                {
                    "task_id": f"task-{task:04d}",
                    "policy_id": policy,
                    "cohort": cohorts[task] if cohorts else None,
                    "environment_name": "env",
                    "environment_version": "1",
                    "reward": None if reward is None else float(reward),
                    "num_steps": steps + (task + attempt) % 3,
                    "input_tokens": tokens * 9 + task % 7,
                    "output_tokens": tokens,
                }
            )
    return pl.DataFrame(rows, schema=SCHEMA)


def write_dataset(path: Path, rows: pl.DataFrame) -> Path:
    """Only what the gate reads: the trajectories table and the manifest."""
    path.mkdir()
    write_deltalake(str(path / "trajectories"), rows)
    manifest = {
        "schema_version": DATASET_SCHEMA_VERSION,
        "digest": f"digest-of-{path.name}",
        "tables": {"trajectories": {"path": "trajectories", "version": 0}},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
