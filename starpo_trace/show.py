"""Dataset or trace store -> terminal view: where the spans went, rewards, trajectories, one of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from starpo_trace.convert.manifest import Accounting, Manifest
from starpo_trace.look.funnel import ReasonCount
from starpo_trace.look.numbers import Distribution, format_number
from starpo_trace.look.opened import Opened, find_trajectory, open_path, read_trajectories
from starpo_trace.look.overview import BreakdownRow, Overview, summarize
from starpo_trace.look.terminal import render_trajectory
from starpo_trace.plain import escape_controls

_STYLES: Final = {"rl": "green", "sft": "yellow", "none": "red"}
_SIGNATURES: Final = {
    "valid": "with a valid signature",
    "invalid": "with an invalid signature",
    "unchecked": "signed, not checked (no --reward-keys)",
    "missing": "not signed",
}
_NAMED_FILES: Final = 5
_CELL_WIDTH: Final = 60
"""One long name must not push all others out of sight; the rest of it is on the next lines."""
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def show_path(
    path: Path,
    console: Console,
    *,
    trajectory_id: str | None = None,
    max_trajectories: int = 20,
) -> None:
    """Dataset, trace store or OTLP file -> printed on `console`.

    Raises:
        DatasetError: there is no such trajectory, or no single one whose id begins so.
        SourceError: the path does not exist or holds no spans.
    """
    opened = open_path(path)
    if trajectory_id is not None:
        found = find_trajectory(opened.scan, trajectory_id)
        for line in render_trajectory(read_trajectories(opened.scan, [found])):
            console.print(line, soft_wrap=True)
        return
    # A path stays in one piece.
    console.print(Text(escape_controls(str(path)), "italic"), soft_wrap=True)
    overview = summarize(opened)
    console.print(render_accounting(opened.accounting, overview, _count_signatures(opened)))
    curation = opened.manifest.curation if opened.manifest is not None else {}
    for line in [
        *render_curation(curation),
        *render_reasons(overview.funnel.reasons),
        *render_rewards(overview),
    ]:
        console.print(line, soft_wrap=True)
    console.print()
    _print_trajectories(console, opened, overview.num_trajectories, max_trajectories)


def render_manifest(manifest: Manifest) -> RenderableType:
    """Manifest -> the funnel from spans read to trajectories usable for RL."""
    return _render_funnel(
        manifest.accounting,
        manifest.counts["trajectories"],
        verdicts=manifest.usable_for,
        signatures=manifest.signatures,
    )


def render_accounting(
    accounting: Accounting, overview: Overview, signatures: Mapping[str, int]
) -> RenderableType:
    """Accounting and numbers of the tables -> the funnel, as `render_manifest`, with its trees."""
    _, trees, trajectories = overview.funnel.stages
    return _render_funnel(
        accounting,
        trajectories.total,
        verdicts={share.tone: share.count for share in trajectories.shares},
        signatures=signatures,
        num_trees=trees.num_kept,
    )


def render_curation(curation: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A manifest's `curation` -> what a recipe left out and held out; nothing where it did neither."""
    excluded = curation.get("excluded_by_first_reason", {})
    splits = curation.get("splits", {})
    unseen = [name for name, count in curation.get("rewards", {}).items() if count == 0]
    if excluded or any(each["trajectories"] for name, each in splits.items() if name != "train"):
        title = f"\nkept {curation['kept']:,} of {curation['trajectories']:,} trajectories"
        yield Text(title, "bold")
        for name, each in splits.items():
            if each["trajectories"]:
                style = "" if each["kept"] else "red"
                yield Text(f"{each['kept']:>9,}  {name}, of {each['trajectories']:,}", style)
        for reason, count in sorted(excluded.items(), key=lambda item: (-item[1], item[0])):
            yield Text(f"{count:>9,}  left out: {escape_controls(reason)}")
    for name in unseen:
        words = f"rewards.{name} of the recipe: no reward has this name"
        yield Text(escape_controls(words), "red")


def render_reasons(reasons: tuple[ReasonCount, ...]) -> Iterator[RenderableType]:
    """Reasons -> how many trajectories have each, and for how many it is the only hindrance."""
    if reasons:
        yield Text("\nreasons why not better (only that: nothing else hinders)", "bold")
    for row in reasons:
        alone = "" if row.num_alone is None else f"{row.num_alone:,} only that"
        yield Text.assemble(
            f"{row.num_trajectories:>9,}  ",
            (f"{row.verdict:<5}", _STYLES[row.verdict]),
            escape_controls(f"{row.reason:<24} {alone:>18}  "),
            (row.meaning, "dim"),
        )


def render_rewards(overview: Overview) -> Iterator[RenderableType]:
    """Rewards -> a histogram of all, and of each cohort over the same bins."""
    reward, groups = overview.reward, overview.groups
    if not reward.num_counted:
        return
    labels = reward.bins.labels
    axis = " .. ".join(dict.fromkeys((labels[0], labels[-1])))
    yield Text(f"\nrewards by cohort, over {axis}", "bold")
    cohorts = overview.breakdowns[0].rows
    for row in cohorts:
        yield _render_row(_name(row), row.reward)
    if len(cohorts) > 1:
        yield _render_row("all", reward)
    varied = groups.shares[0][2]
    yield Text(f"{varied:,} of {groups.num_groups:,} tasks have attempts whose rewards differ")


def _render_row(name: str, reward: Distribution) -> RenderableType:
    tallest = max([*reward.counts, 1])
    # What is there at all is seen: only 0 is blank.
    bars = "".join(_BLOCKS[-(-8 * count // tallest)] for count in reward.counts)
    missing = reward.num_missing + reward.num_odd
    facts = f"mean {format_number(reward.mean)}, {reward.num_counted:,} rewards"
    facts += f", {missing:,} without" if missing else ""
    return Text.assemble(
        f"{escape_controls(name):>24}  ", (f"▕{bars}▏", "cyan"), f" {escape_controls(facts)}"
    )


def _name(row: BreakdownRow) -> str:
    if row.num_values > 1:
        return f"{row.num_values:,} others"
    return "no cohort" if row.name is None else row.name


def _count_signatures(opened: Opened) -> dict[str, int]:
    counts = opened.scan("rewards").group_by("signature").len().collect()
    return dict(counts.iter_rows())


def _render_funnel(
    accounting: Accounting,
    num_trajectories: int,
    *,
    verdicts: Mapping[str, int],
    signatures: Mapping[str, int],
    num_trees: int | None = None,
) -> RenderableType:
    table = Table(show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column(overflow="fold")  # a file's name is there whole
    table.add_row(f"{accounting.spans_read:,}", "spans read", style="bold")
    for reason, count in accounting.spans_rejected_by_reason.items():
        table.add_row(f"{count:,}", f"rejected: {escape(escape_controls(reason))}")
    if accounting.duplicates:
        table.add_row(f"{accounting.duplicates:,}", "duplicates")
    table.add_row(f"{accounting.spans_used:,}", "spans used", style="bold")
    if num_trees is not None:
        table.add_row(f"{num_trees:,}", "trees (traces with a trajectory)", style="bold")
    table.add_row(f"{num_trajectories:,}", "trajectories", style="bold")
    for verdict, style in _STYLES.items():
        table.add_row(f"{verdicts.get(verdict, 0):,}", f"usable for {verdict}", style=style)
    for state, words in _SIGNATURES.items():
        if count := signatures.get(state, 0):
            style = "red" if state == "invalid" else None
            table.add_row(f"{count:,}", f"rewards {words}", style=style)
    if accounting.damaged_records:
        note = "damaged records in the sources, skipped"
        table.add_row(f"{accounting.damaged_records:,}", note, style="red")
        for each in accounting.damage[:_NAMED_FILES]:
            table.add_row("", escape(escape_controls(each)), style="red")
        if (num_more := len(accounting.damage) - _NAMED_FILES) > 0:
            table.add_row("", f"and in {num_more:,} more files", style="red")
    return table


def _print_trajectories(console: Console, opened: Opened, num_all: int, max_rows: int) -> None:
    columns = {
        "trajectory_id": "trajectory",
        "task_id": "task",
        "attempt": "attempt",
        "end": "end",
        "num_turns": "turns",
        "num_tool_calls": "tool calls",
        "num_branches": "branches",
        "reward": "reward",
        "usable_for": "usable for",
    }
    table = Table()
    for name, heading in columns.items():
        is_id = name == "trajectory_id"
        table.add_column(heading, overflow="fold", max_width=None if is_id else _CELL_WIDTH)
    first = (
        opened.scan("trajectories")
        .select("started_ns", *columns)
        .sort("started_ns", "trajectory_id")
        .head(max_rows)
        .select(*columns)
        .collect(engine="streaming")
    )
    for *cells, reward, verdict in first.iter_rows():
        table.add_row(
            *("-" if cell is None else escape(escape_controls(str(cell))) for cell in cells),
            "-" if reward is None else f"{reward:g}",
            Text(str(verdict), _STYLES.get(verdict, "")),
        )
    num_hidden = num_all - max_rows
    # An id that is cut is of no use, so the table is as wide as it needs, not as the terminal is.
    table.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table, soft_wrap=True)
    console.print(f"... and {num_hidden:,} more (--limit)" if num_hidden > 0 else "")
