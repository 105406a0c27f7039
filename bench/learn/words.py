"""Figures -> tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from learn.cells import BEHAVIOUR
from learn.methods import METHODS


def print_table(figures: Mapping[str, Any]) -> None:
    """Success of every method by environment and condition, then the gate's answers."""
    console = Console()
    places = list(dict.fromkeys((r["environment"], r["condition"]) for r in figures["rows"]))
    found = {(r["environment"], r["condition"], r["method"]): r for r in figures["rows"]}
    table = Table(title="Success on unseen tasks, %  (difference to filtered BC)")
    table.add_column("method")
    for environment, condition in places:
        table.add_column(f"{environment}\n{condition}", justify="right")
    for method in (BEHAVIOUR, *METHODS):
        cells = [_describe(found.get((*place, method))) for place in places]
        if any(cells):
            table.add_row(method, *cells)
    console.print(table)
    gate = figures["gate"]
    console.print(f"gate on {gate['candidates']} candidates: {gate['verdicts']}", highlight=False)
    console.print(f"off-policy evaluation: {figures['ope']}", highlight=False)


def _describe(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "result" in row:
        return row["result"]
    text = f"{100 * row['success']['mean']:.1f}"
    if "over_filtered_bc" in row:
        text += f" ({100 * row['over_filtered_bc']['mean']:+.1f})"
    return text
