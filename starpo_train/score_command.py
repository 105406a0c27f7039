"""`starpo-train score`: its options, and what is done with them."""

import argparse
from pathlib import Path


def add_score(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `score`."""
    command.description = "Score recorded runs by deterministic evaluators; docs/evaluators.md."
    command.add_argument("dataset", type=Path, metavar="DATASET")
    command.add_argument("--evaluator", action="append", default=[], metavar="NAME")
    command.add_argument("--split", help="default: all runs")
    command.add_argument(
        "--references", type=Path, metavar="FILE.jsonl", help="what is expected, task by task"
    )
    command.add_argument("--level", choices=("trajectory", "step"), default="trajectory")
    command.add_argument(
        "--pass-k", type=int, metavar="K", help="chance that K attempts at a task all succeed"
    )
    command.add_argument("--threshold", type=float, default=1.0, help="a score that is a success")
    command.add_argument("-o", "--output", type=Path, metavar="FILE.parquet")
    command.set_defaults(handler=_score)


def _score(options: argparse.Namespace) -> int:
    from rich.console import Console

    from starpo_train.errors import ConfigError
    from starpo_train.evals import DEFAULT_EVALUATORS, evaluate_dataset
    from starpo_train.evals.table import print_pass_hat_k, print_scores

    if options.output is not None and not options.output.parent.is_dir():
        raise ConfigError(f"-o {options.output}: there is no folder {options.output.parent}.")
    if options.output is not None and options.output.is_dir():
        raise ConfigError(f"-o {options.output}: a folder; give the name of a file.")
    if options.pass_k is not None and (options.pass_k < 1 or options.level == "step"):
        raise ConfigError(f"--pass-k {options.pass_k}: at least 1, and of whole trajectories.")
    scores = evaluate_dataset(
        options.dataset,
        options.evaluator or DEFAULT_EVALUATORS,
        split=options.split,
        references=options.references,
        level=options.level,
    )
    console = Console(highlight=False)
    print_scores(scores, console=console)
    if options.pass_k is not None:
        print_pass_hat_k(scores, options.pass_k, threshold=options.threshold, console=console)
    if options.output is not None:
        scores.write_parquet(options.output)
        line = f"written: {options.output} ({scores.height:,} rows)"
        console.print(line, markup=False, soft_wrap=True)
    return 0
