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
    found = {(r["environment"], r["condition"], r["method"]): r for r in figures["rows"]}
    for environment in dict.fromkeys(row["environment"] for row in figures["rows"]):
        conditions = dict.fromkeys(
            row["condition"] for row in figures["rows"] if row["environment"] == environment
        )
        table = Table(title=f"{environment}: success on unseen tasks, % (less that of filtered BC)")
        table.add_column("method")
        for condition in conditions:
            table.add_column(condition, justify="right")
        for method in (BEHAVIOUR, *METHODS):
            cells = [_describe(found.get((environment, each, method))) for each in conditions]
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
