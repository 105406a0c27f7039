"""A replay -> tables and a few lines for the terminal."""

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from starpo_train.replay.comparing import METRICS
from starpo_train.replay.run import ReplayResult
from starpo_train.replay.summary import Figure, count_decisions, count_nulls, count_recorded_valid

_TITLES: Final = {
    "same_tool": "same tool",
    "same_call": "same call",
    "valid": "valid call",
    "same_decision": "call or answer",
}


def print_replay(result: ReplayResult, console: Console | None = None) -> None:
    """Figures by cohort, the decisions, what has no value and why."""
    console = console or Console(highlight=False)
    settings = result.settings
    title = f"{settings.checkpoint} on successes of {settings.dataset} ({settings.split})"
    console.print(title, markup=False, soft_wrap=True)
    console.print(_build_figures(result.figures))
    console.print(_build_decisions(result))
    for line in _list_facts(result):
        console.print(line, markup=False, soft_wrap=True)


def _build_figures(figures: list[Figure]) -> Table:
    table = Table()
    table.add_column("", overflow="fold")
    for name in ("value", "95% interval", "tasks", "runs", "turns"):
        table.add_column(name, justify="right")
    cohort = None
    for figure in figures:
        if figure.cohort != cohort:
            table.add_section()
            table.add_row(f"[bold]{escape(figure.cohort)}[/]")
            cohort = figure.cohort
        value, interval = "null", ""
        if figure.value is not None:
            value, interval = f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}"
        counts = (figure.num_tasks, figure.num_trajectories, figure.num_turns)
        table.add_row(_TITLES[figure.metric], value, interval, *(f"{count:,}" for count in counts))
    return table


def _build_decisions(result: ReplayResult) -> Table:
    counts = count_decisions(result.compared)
    table = Table()
    for name in ("recorded \\ checkpoint", "call", "answer", "neither"):
        table.add_column(name, justify="left" if "recorded" in name else "right")
    for recorded in ("call", "answer"):
        asked = (counts[recorded, decision] for decision in ("call", "answer", "neither"))
        table.add_row(recorded, *(f"{count:,}" for count in asked))
    return table


def _list_facts(result: ReplayResult) -> list[str]:
    num_turns = sum(len(each.turns) for each in result.compared)
    num_asked = count_decisions(result.compared).total()
    first = f"asked at {num_asked:,} of {num_turns:,} turns of {len(result.compared):,} runs"
    if result.left_out:
        first += f"; runs left out: {_join(result.left_out)}"
    turns = [turn for each in result.compared for _, turn in each.turns]
    num_cut = sum(turn.asked is not None and turn.asked.problem == "cut" for turn in turns)
    nulls = count_nulls(result.compared)
    num_valid, num_known = count_recorded_valid(result.compared)
    return [
        first,
        *(f"{_TITLES[name]}, null: {_join(nulls[name])}" for name in METRICS if nulls[name]),
        f"{num_cut:,} answers were cut at {result.max_tokens:,} tokens, and count as neither",
        f"of the recorded calls, those of {num_valid:,} of {num_known:,} turns are valid",
    ]


def _join(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
