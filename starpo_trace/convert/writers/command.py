"""`starpo-trace write`: its options."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starpo_trace.arguments import parse_path
from starpo_trace.errors import ConfigError
from starpo_trace.plain import escape_controls

FORMS = {
    "openai": "OpenAI's fine-tuning lines",
    "trl": "TRL's conversations, with reasoning",
    "trl-pairs": "TRL's preference pairs: attempts at one task that differ in reward",
    "trl-kto": "TRL's unpaired preferences, for KTO",
    "verl": "prompts for RL with verl, Parquet",
    "verl-sft": "conversations for verl's multi-turn fine-tuning, Parquet",
    "atif": "Agent Trajectory Interchange Format, one document a line",
    "otlp": "OpenTelemetry GenAI spans, JSON lines as a Collector's file exporter writes",
}
"""Name of a form -> what it is."""
_OPTIONS_OF = {
    "min_gap": ("trl-pairs",),
    "pairs_per_task": ("trl-pairs",),
    "desirable_from": ("trl-kto",),
    "data_source": ("verl",),
    "history": ("otlp",),
}
"""Options that only some forms have."""


def add_write_command(commands: Any) -> None:
    """Add `write` to the commands of `starpo-trace`."""
    forms = "\n".join(f"  {name:<10} {text}" for name, text in FORMS.items())
    parser = commands.add_parser(
        "write",
        help="dataset -> files for other trainers and tools",
        description=f"Write a dataset's trajectories as a file of another form:\n{forms}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", type=parse_path, metavar="DATASET")
    parser.add_argument("-o", "--output", type=parse_path, required=True, metavar="FILE")
    parser.add_argument(
        "--as", dest="form", choices=tuple(FORMS), default="openai", help="default: openai"
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="only these tasks (default: train; atif and otlp: all)",
    )
    parser.add_argument("--min-reward", type=float, help="only trajectories with at least this")
    parser.add_argument(
        "--min-gap", type=float, help="trl-pairs: least difference of rewards (default: any)"
    )
    parser.add_argument(
        "--pairs-per-task", type=int, metavar="N", help="trl-pairs: at most so many (default: 4)"
    )
    parser.add_argument(
        "--desirable-from", type=float, metavar="R", help="trl-kto: label runs worth R or more"
    )
    parser.add_argument(
        "--data-source", metavar="NAME", help="verl: what its reward function is chosen by"
    )
    parser.add_argument(
        "--history",
        choices=("delta", "full"),
        help="otlp: messages once (default), or with every call, as other tools show them",
    )
    parser.set_defaults(command=_write)


def _write(options: argparse.Namespace) -> int:
    from starpo_trace.convert.writers.forms import WriteOptions, write_dataset

    given = {name: getattr(options, name) for name in _OPTIONS_OF}
    for name, forms in _OPTIONS_OF.items():
        if given[name] is not None and options.form not in forms:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: only --as {' or '.join(forms)} has it; leave it out")
    with _show_progress() as advance:
        report = write_dataset(
            options.dataset,
            options.output,
            form=options.form,
            options=WriteOptions(
                split=options.split,
                min_reward=options.min_reward,
                **{name: value for name, value in given.items() if value is not None},
            ),
            advance=advance,
        )
    for line in report.describe():
        print(escape_controls(line))
    return 0


@contextmanager
def _show_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("trajectories"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("write", total=None)

        def advance(num_done: int, num_total: int) -> None:
            bar.update(task, completed=num_done, total=num_total)

        yield advance
