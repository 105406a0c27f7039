"""An evaluation -> a table and a few lines for the terminal."""

from math import isinf

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from starpo_train.ope.bootstrap import Interval
from starpo_train.ope.run import OpeResult
from starpo_train.ope.verdict import Estimate


def print_ope(result: OpeResult, console: Console | None = None) -> None:
    """Estimates beside what was recorded, then the verdict with every doubt."""
    console = console or Console(highlight=False)
    found, settings = result.evaluation, result.settings
    title = f"{settings.checkpoint} on {settings.dataset} ({settings.split})"
    console.print(title, markup=False, soft_wrap=True)
    table = Table()
    for name in ("", "value", "95% interval", "ESS", "max weight"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    total = found.basis.num_trajectories
    table.add_row("recorded", *_format(found.behaviour), f"{total}", f"{1 / total:.1%}")
    table.add_section()
    for estimate in found.estimates:
        if estimate.value is None:
            table.add_row(estimate.name, "null", escape(estimate.reason or ""), "", "")
            continue
        name = f"{estimate.name} (estimated)" if estimate.is_estimated else estimate.name
        table.add_row(name, *_format(estimate), *_describe_weights(result, estimate.name))
    console.print(table)
    for line in _list_facts(result):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"[bold]{found.verdict.outcome}[/]{_describe_rest(result)}", soft_wrap=True)
    for doubt in found.verdict.doubts:
        console.print(f"  {doubt.name}: {doubt.detail}", markup=False, soft_wrap=True)


def _format(estimate: Estimate) -> tuple[str, str]:
    value = "" if estimate.value is None else f"{estimate.value:.4g}"
    return value, _format_interval(estimate.interval)


def _format_interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if isinf(interval.low) or isinf(interval.high):
        return "unbounded"
    return f"{interval.low:.4g} to {interval.high:.4g}"


def _describe_weights(result: OpeResult, name: str) -> tuple[str, str]:
    """The trajectories' weights; SN-PDIS has a set for each turn and shows the worst ESS."""
    found = result.evaluation
    if found.basis.weights is None or name == "FQE":
        return "", ""
    ess = min(found.ess_per_turn_K) if name == "SN-PDIS" else found.basis.weights.ess
    return f"{ess:.1f}", f"{found.basis.weights.largest_share:.1%}"


def _list_facts(result: OpeResult) -> list[str]:
    found = result.evaluation
    lines = [f"{found.basis.num_trajectories} trajectories in {found.num_clusters} clusters"]
    if result.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.left_out.items())
        lines[0] += f"; left out: {reasons}"
    if found.basis.mean_weight is not None and found.basis.mean_weight.value is not None:
        interval = _format_interval(found.basis.mean_weight.interval)
        lines.append(
            f"the weights' mean is {found.basis.mean_weight.value:.4g} ({interval}); expected 1"
        )
    if found.bellman_error is not None and found.bellman_error_of_zero is not None:
        lines.append(
            f"FQE's held-out Bellman error is {found.bellman_error:.4g}, "
            f"that of Q = 0 is {found.bellman_error_of_zero:.4g}"
        )
    cut = result.candidates
    if cut is not None:
        lines.append(
            f"{cut.num_candidates} candidate turns were sampled; {cut.num_cut} were cut at "
            f"{cut.max_tokens} tokens"
        )
    return lines


def _describe_rest(result: OpeResult) -> str:
    verdict = result.evaluation.verdict
    claim = "the checkpoint earns more than what was recorded"
    return f": {claim}" + (f" (by {verdict.by})" if verdict.by and not verdict.doubts else "")
