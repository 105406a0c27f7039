"""`starpo-train`: run, resume, explain, evaluate, serve, gate, report."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starpo_train.errors import StarpoTrainError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do it, and return the exit code."""
    from rich.console import Console

    parser = build_parser()
    options = parser.parse_args(arguments)
    # no progress bar of other libraries between our lines
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return options.handler(options)
    except StarpoTrainError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]error:[/] {_escape(str(error))}"
        )
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Every subcommand and its options."""
    parser = argparse.ArgumentParser(
        prog="starpo-train", description="Fine-tune on recorded trajectories, and gate the release."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("run", help="train as a run file says")
    command.add_argument("run_file", type=Path, metavar="RUN.toml")
    command.set_defaults(handler=_run)

    command = commands.add_parser("resume", help="go on with an interrupted run")
    command.add_argument("run_folder", type=Path, metavar="RUN_DIR")
    command.set_defaults(handler=_resume)

    command = commands.add_parser("explain", help="say what a dataset allows, and why")
    command.add_argument("dataset", type=Path, metavar="DATASET")
    command.add_argument("--split", default="train")
    command.set_defaults(handler=_explain)
    return parser


def _run(options: argparse.Namespace) -> int:
    from starpo_train.config import read_run_config

    return _train(read_run_config(options.run_file), resume=False)


def _resume(options: argparse.Namespace) -> int:
    from starpo_train.run_folder import read_resumed_config

    return _train(read_resumed_config(options.run_folder), resume=True)


def _train(config: Any, *, resume: bool) -> int:
    from starpo_train.progress import TrainingDisplay
    from starpo_train.trainer import train

    with TrainingDisplay() as display:
        result = train(config, resume=resume, progress=display.show)
    display.print_end(result)
    return EXIT_INTERRUPTED if result.interrupted else 0


def _explain(options: argparse.Namespace) -> int:
    from starpo_train.dataset import read_trajectories
    from starpo_train.progress import print_facts
    from starpo_train.provenance import describe_data, judge_algorithms

    facts = describe_data(read_trajectories(options.dataset, split=options.split))
    print_facts(facts, judge_algorithms(facts), title=f"{options.dataset} ({options.split})")
    return 0


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
