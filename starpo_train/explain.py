"""Dataset + a model's tokenizer -> what its chat template does to the trajectories, for people."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from starpo_train.dataset import Trajectory, read_message_graphs
from starpo_train.drift import TrajectoryDrift, measure_trajectory, summarize_drift
from starpo_train.errors import ConfigError
from starpo_train.findings import FAULTS, LOSSES
from starpo_train.modelfolder import load_tokenizer
from starpo_train.render import TurnRenderer

_AT_ONCE = 256
"""Trajectories whose messages are read at a time."""

_EXAMPLES: Final = {
    "template_refuses": "the template's words",
    "template_opens_answer": "the prompt's end, and what the rendered answer begins with",
    "template_changes_answer": "rendered, without the recorded text",
    "template_drops_tool_calls": "rendered, without the recorded calls",
    "template_drops_reasoning": "reasoning that is not rendered",
    "template_leaves_answer_open": "the rendered answer's end",
    "template_rewrites_history": "the answer as it was given, and in a later prompt",
    "template_rewrites_arguments": "rendered, with the arguments in other JSON",
    "template_adds_to_answer": "added before the answer",
    "template_adds_system": "the template's own system prompt",
    "boundary_drift": "the text where prompt and answer meet",
}
"""What the text beside a finding is."""


def explain_rendering(
    dataset: Path,
    trajectories: list[Trajectory],
    model: str,
    *,
    output: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure every trajectory, print what was found, and return it; with `output`, a line for each.

    Raises:
        ConfigError: `output` cannot be there.
        ModelError: no tokenizer, or one without a chat template that some turns need.
        DataError: the dataset's messages cannot be read.
    """
    console = console or Console(highlight=False)
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--trajectories {output}: there is no folder {output.parent}.")
    tokenizer = load_tokenizer(model, where="--model")
    if not tokenizer.chat_template and not any(t.lacks_ids() for t in trajectories):
        _print_lines(
            console,
            f"{model} has no chat template, and no turn needs one: all have recorded ids",
        )
        return summarize_drift([])
    renderer = TurnRenderer(tokenizer, model_path=model)
    drifts: list[TrajectoryDrift] = []
    with nullcontext() if output is None else output.open("w", encoding="utf-8") as file:
        measured = track(
            _measure(dataset, trajectories, renderer),
            total=len(trajectories),
            description="rendering",
            console=console,
            transient=True,
        )
        for drift in measured:
            drifts.append(drift)
            if file is not None:
                file.write(json.dumps(drift.describe(), ensure_ascii=False) + "\n")
    summary = summarize_drift(drifts)
    _print_summary(summary, drifts, model=model, console=console)
    if output is not None:
        console.print(f"written: {output}", markup=False, soft_wrap=True)
    return summary


def _measure(
    dataset: Path, trajectories: list[Trajectory], renderer: TurnRenderer
) -> Iterator[TrajectoryDrift]:
    for start in range(0, len(trajectories), _AT_ONCE):
        part = trajectories[start : start + _AT_ONCE]
        graphs = read_message_graphs(dataset, [t.trajectory_id for t in part])
        for trajectory in part:
            yield measure_trajectory(trajectory, graphs.get(trajectory.trajectory_id, {}), renderer)


def _print_summary(
    summary: dict[str, Any], drifts: list[TrajectoryDrift], *, model: str, console: Console
) -> None:
    table = Table(title=f"chat template of {model}", show_header=False)
    recorded, rendered = summary["num_recorded"], summary["num_rendered"]
    if recorded:
        table.add_row("turns with recorded ids", f"{recorded:,}")
        table.add_row("whose messages it renders", _share(rendered, recorded))
        for name in ("prompts", "answers"):
            equal = summary[f"num_{name}_equal"]
            table.add_row(f"with the recorded ids: {name}", _share(equal, rendered))
        again = _share(summary["num_retokenized_equal"], recorded)
        table.add_row("answers that decode and encode to themselves", again)
    num_without = sum(bool(drift.findings) or drift.num_recorded == 0 for drift in drifts)
    if num_without:
        table.add_row("trajectories without recorded ids", f"{num_without:,}")
    for name, count in summary["findings"].items():
        effect = "left out" if name in FAULTS else "left out, or kept by data.lossy_rendering"
        table.add_row(name, f"{count:,} ({effect if name in FAULTS + LOSSES else 'reported'})")
    for name, count in summary["left_out"].items():
        table.add_row(f"left out: {name}", f"{count:,}")
    console.print(table)
    _print_examples(drifts, console)


def _print_examples(drifts: list[TrajectoryDrift], console: Console) -> None:
    differing = next((d for d in drifts if d.first_difference is not None), None)
    if differing is not None and differing.first_difference is not None:
        first = differing.first_difference
        _print_lines(
            console,
            f"first differing prompt: {differing.trajectory_id}, turn {first['turn']}, "
            f"token {first['position']}",
            f"  recorded: {first['recorded']!r}",
            f"  rendered: {first['rendered']!r}",
        )
    examples: dict[str, tuple[str, str]] = {}  # finding -> trajectory and text
    for drift in drifts:
        for name, text in drift.examples.items():
            examples.setdefault(name, (drift.trajectory_id, text))
    for name, (trajectory, text) in examples.items():
        what = _EXAMPLES.get(name, "found")
        _print_lines(console, f"example of {name}: {trajectory}", f"  {what}: {text!r}")
    if examples or differing is not None:
        _print_lines(console, "docs/tokens.md says what each means and what to do")


def _print_lines(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")
