"""Scores -> scores.parquet: one row an item, also those without a score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from starpo_train.judge.records import JudgeItem, JudgeScore

SCORES_FILE: Final = "scores.parquet"
SCHEMA: Final[dict[str, Any]] = {
    "item_id": pl.String,
    "trajectory_id": pl.String,
    "task_id": pl.String,
    "turn": pl.Int64,
    "step": pl.Int64,
    "score": pl.Float64,  # null: no judgement
    "reason": pl.String,
    "status": pl.String,
    "judge_id": pl.String,
    "judge_prompt_hash": pl.String,
    "model": pl.String,
    "temperature": pl.Float64,
    "parser": pl.String,
    "schema_hash": pl.String,
    "content_hash": pl.String,
    "answer_format": pl.String,
    "served_model": pl.String,
    "fingerprint": pl.String,
    "input_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "num_neutralised": pl.Int64,
    "is_cached": pl.Boolean,
}
_OF_ITEM: Final = ("item_id", "trajectory_id", "task_id", "turn", "step")
_OF_PIN: Final = ("model", "temperature", "parser", "schema_hash")


def build_scores(judged: Sequence[tuple[JudgeItem, JudgeScore]]) -> pl.DataFrame:
    """Items and scores -> the table, by item id."""
    rows = [_describe(item, score) for item, score in judged]
    return pl.DataFrame(rows, schema=SCHEMA).sort("trajectory_id", "turn", "item_id")


def write_scores(path: Path, judged: Sequence[tuple[JudgeItem, JudgeScore]]) -> Path:
    """Write the table, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    build_scores(judged).write_parquet(temporary)
    temporary.replace(path)
    return path


def _describe(item: JudgeItem, score: JudgeScore) -> dict[str, Any]:
    owners: dict[str, Any] = dict.fromkeys(SCHEMA, score)
    owners |= dict.fromkeys(_OF_ITEM, item) | dict.fromkeys(_OF_PIN, score.pin)
    return {name: getattr(owner, name) for name, owner in owners.items()}
