"""`starpo-train judge`: its options, and what is done with them."""

import argparse
from pathlib import Path
from typing import Final

EXIT_INCONCLUSIVE: Final = 20
"""As the gate's."""
EXIT_INTERRUPTED: Final = 130


def add_judge(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `judge`."""
    command.description = (
        "Score a dataset with a pinned LLM judge; docs/judge.md. "
        "Exit code: VALID 0, INCONCLUSIVE 20; 2 on an error."
    )
    command.add_argument("judge_file", type=Path, metavar="JUDGE.toml")
    command.set_defaults(handler=_judge)


def _judge(options: argparse.Namespace) -> int:
    from starpo_train.judge.display import JudgeDisplay
    from starpo_train.judge.run import run_judge
    from starpo_train.judge.settings import read_judge_config

    config = read_judge_config(options.judge_file)
    with JudgeDisplay() as display:
        run = run_judge(config, progress=display.show)
    display.print_end(run, again=f"starpo-train judge {options.judge_file}")
    if run.is_interrupted:
        return EXIT_INTERRUPTED
    return 0 if run.is_valid else EXIT_INCONCLUSIVE
