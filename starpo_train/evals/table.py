"""Scores of a dataset -> what a person is told."""

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from starpo_train.evals.batch import compute_pass_hat_k

_BARS = " ▁▂▃▄▅▆▇█"
_SHOWN = 3
"""Reasons for null scores that are named."""


def print_scores(scores: pl.DataFrame, *, console: Console | None = None) -> None:
    """Evaluators by policy and distribution: how many runs have a score, and which."""
    console = console or Console(highlight=False)
    what = "steps" if "step" in scores.columns else "runs"
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("evaluator", "policy", "distribution"):
        table.add_column(heading, overflow="fold")
    for heading in (what, "no score", "mean", "median", "lowest"):
        table.add_column(heading, justify="right")
    table.add_column("0 … 1")
    groups = ("evaluator", "policy_id", "distribution")
    last = None
    for names, rows in scores.group_by(*groups, maintain_order=True):
        table.add_row(*_describe(names, rows["score"], repeats=last == names[0]))
        last = names[0]
    console.print(table)
    for line in list_reasons(scores):
        console.print(line, markup=False, soft_wrap=True)


def list_reasons(scores: pl.DataFrame) -> list[str]:
    """Why there is no score, by evaluator, the most frequent reasons first."""
    found = (
        scores.filter(pl.col("score").is_null(), pl.col("reason") != "")
        .group_by("evaluator", "reason")
        .len()
        .sort("evaluator", "len", "reason", descending=[False, True, False])
    )
    return [
        f"no score: {evaluator}: {reason} ({count:,})"
        for _, rows in found.group_by("evaluator", maintain_order=True)
        for evaluator, reason, count in rows.head(_SHOWN).iter_rows()
    ]


def print_pass_hat_k(
    scores: pl.DataFrame, k: int, *, threshold: float, console: Console | None = None
) -> None:
    """pass^k of each evaluator and policy."""
    console = console or Console(highlight=False)
    for names, rows in scores.group_by("evaluator", "policy_id", maintain_order=True):
        found = compute_pass_hat_k(rows, k, threshold=threshold)
        value = "-" if found.value is None else f"{found.value:.3f}"
        line = (
            f"pass^{k}, {names[0]} of {names[1] or 'no policy'}: {value} ({found.num_tasks} tasks"
        )
        if found.value is None:
            line += f", one of which has {found.fewest_attempts} scored attempts, {k} are needed"
        console.print(line + ")", markup=False, soft_wrap=True)


def _describe(names: tuple[object, ...], score: pl.Series, *, repeats: bool) -> list[str]:
    known = score.drop_nulls()
    figures = ["-"] * 3
    if len(known):
        figures = [f"{number:.3f}" for number in (known.mean(), known.median(), known.min())]
    shown = ["" if repeats else str(names[0]), *(str(n) if n else "-" for n in names[1:])]
    return [*shown, f"{len(score):,}", f"{score.null_count():,}", *figures, _draw(known)]


def _draw(values: pl.Series, *, num_bins: int = 10) -> str:
    """Histogram of values from 0 to 1 in one line.

    >>> _draw(pl.Series([0.0, 1.0, 1.0]), num_bins=4)
    '▄  █'
    """
    counts = [0] * num_bins
    for value in values:
        counts[min(int(value * num_bins), num_bins - 1)] += 1
    most = max(counts)
    if not most:
        return ""
    # what is there at all is seen
    heights = [max(1, round(8 * count / most)) if count else 0 for count in counts]
    return "".join(_BARS[height] for height in heights)
