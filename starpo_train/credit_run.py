"""Dataset + a rule of credit -> a table, spans, and what a person is told."""

import time
from collections import defaultdict
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from starpo_train.credit_spans import SPANS_FILE, write_credit_spans
from starpo_train.credit_table import CreditRow, build_credit_rows, write_credit_table
from starpo_train.dataset import read_manifest, read_trajectories
from starpo_train.errors import ConfigError, DataError
from starpo_train.turncredit import CreditRule, assign_turn_credit


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditResult:
    """What was computed, and where it is."""

    rows: list[CreditRow]
    num_without_reward: int
    """Trajectories left out: a missing reward is no reward of 0."""
    num_unread: int
    """Trajectories left out: the model reads no turn of theirs."""
    num_spans: int
    spans_path: Path | None
    explained_variance: float | None
    """Of the critic, on held-out tasks."""


def compute_credit(
    dataset: Path,
    output: Path,
    *,
    rule: CreditRule,
    split: str = "train",
    model: str | None = None,
    spans: Path | None = None,
    now_ns: int | None = None,
) -> CreditResult:
    """Credit of every turn of a split's rewarded trajectories -> `output`, and `spans`.

    Raises:
        ConfigError: the estimator and the model do not go together, or no file can be there.
        DataError: no dataset, an empty split, no trajectory with a reward.
        ModelError: the model cannot be loaded.
    """
    if (rule.estimator == "bilevel_gae") != (model is not None):
        raise ConfigError(
            f"--advantage {rule.estimator} with --model {model}: bilevel_gae needs a model for its "
            "critic, and nothing else has a use for one."
        )
    if spans is not None and (spans.is_dir() or not spans.suffix):
        spans = spans / SPANS_FILE
    _require_places(output, spans)
    manifest = read_manifest(dataset)
    trajectories = read_trajectories(dataset, split=split)
    num_without = sum(t.reward is None for t in trajectories)
    if num_without == len(trajectories):
        raise DataError(f"{dataset}: none of {num_without} trajectories has a trusted reward.")
    values, explained, num_unread = None, None, 0
    if model is not None:
        from starpo_train.turnvalues import estimate_turn_values

        critic = estimate_turn_values(dataset, trajectories, model, rule)
        values, explained = critic.values, critic.explained_variance
        num_unread = critic.num_left_out
    credits_of = assign_turn_credit(trajectories, rule, values=values)
    rows = build_credit_rows(manifest, trajectories, credits_of, rule)
    write_credit_table(output, rows)
    num_spans = 0
    if spans is not None:
        spans.parent.mkdir(exist_ok=True)
        now_ns = time.time_ns() if now_ns is None else now_ns
        num_spans = write_credit_spans(spans, rows, manifest, now_ns=now_ns)
    return CreditResult(
        rows=rows,
        num_without_reward=num_without,
        num_unread=num_unread,
        num_spans=num_spans,
        spans_path=spans,
        explained_variance=explained,
    )


def _require_places(output: Path, spans: Path | None) -> None:
    if output.is_dir():
        raise ConfigError(
            f"-o {output}: is a folder; name a file, such as {output}/credit.parquet."
        )
    if spans is not None and spans.resolve() == output.resolve():
        raise ConfigError(f"--spans {spans}: is also -o; the table and the spans are two files.")
    for option, path in (("-o", output), ("--spans", spans)):
        folder = path.parent if path is not None else Path()
        if option == "--spans" and path is not None and path.name == SPANS_FILE:
            folder = folder.parent  # is made
        if not folder.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {folder}.")


def print_credit(result: CreditResult, output: Path, *, console: Console | None = None) -> None:
    """Credit by kind of step, and where the files are."""
    console = console or Console(highlight=False)
    advantages: dict[str, list[float]] = defaultdict(list)
    num_of: dict[str, int] = defaultdict(int)
    for row in result.rows:
        num_of[row.kind] += 1
        if row.advantage is not None:
            advantages[row.kind].append(row.advantage)
    table = Table("kind", "steps", "with credit", "mean", "lowest", "highest", box=box.SIMPLE_HEAD)
    for kind, count in sorted(num_of.items()):
        found = advantages[kind]
        numbers = ["-"] * 3
        if found:
            numbers = [f"{number:+.3f}" for number in (np.mean(found), min(found), max(found))]
        table.add_row(kind, f"{count:,}", f"{len(found):,}", *numbers)
    console.print(table)
    lines = [f"written: {output} ({len(result.rows):,} rows)"]
    if result.num_without_reward:
        lines.insert(0, f"left out: {result.num_without_reward:,} trajectories without a reward")
    if result.num_unread:
        lines.insert(0, f"left out: {result.num_unread:,} trajectories that the model cannot read")
    if result.explained_variance is not None and isfinite(result.explained_variance):
        lines.insert(0, f"critic: {result.explained_variance:.1%} of the returns' variance")
    if result.spans_path is not None:
        lines.append(f"written: {result.spans_path} ({result.num_spans:,} spans)")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
