"""`starpo-train credit`: its options, and what is done with them."""

import argparse
import math
from pathlib import Path


def add_credit(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `credit`."""
    command.add_argument("dataset", type=Path, metavar="DATASET")
    command.add_argument("--split", default="train")
    command.add_argument(
        "--advantage",
        choices=("returns", "rloo", "grpo", "dr_grpo", "bilevel_gae"),
        help="default: returns, with --model bilevel_gae",
    )
    command.add_argument(
        "--model", metavar="PATH", help="on whose hidden states a critic is fitted"
    )
    command.add_argument(
        "--gamma", type=float, help="from turn to turn; default 1, with --model .95"
    )
    command.add_argument("--lambda", type=float, default=1.0, dest="lam", metavar="LAMBDA")
    command.add_argument(
        "--process-weight", type=float, default=1.0, help="of the turns' own rewards"
    )
    command.add_argument(
        "--singleton",
        choices=("drop", "global_baseline"),
        default="drop",
        help="a task with one attempt: no credit, or against all other runs",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.parquet")
    command.add_argument(
        "--spans", type=Path, metavar="FILE.jsonl", help="OTLP/JSON, linked to the steps"
    )
    command.set_defaults(handler=_credit)


def _credit(options: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    from starpo_train.credit_run import compute_credit, print_credit
    from starpo_train.errors import ConfigError
    from starpo_train.turncredit import CreditRule

    disable_progress_bar()
    has_model = options.model is not None
    gamma = options.gamma if options.gamma is not None else 0.95 if has_model else 1.0
    if not math.isfinite(options.process_weight):
        raise ConfigError(f"--process-weight {options.process_weight}: must be a finite number.")
    for option, share in (("--gamma", gamma), ("--lambda", options.lam)):
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{option} {share}: must be between 0 and 1.")
    rule = CreditRule(
        estimator=options.advantage or ("bilevel_gae" if has_model else "returns"),
        gamma=gamma,
        lam=options.lam,
        process_weight=options.process_weight,
        singleton=options.singleton,
    )
    result = compute_credit(
        options.dataset,
        options.output,
        rule=rule,
        split=options.split,
        model=options.model,
        spans=options.spans,
    )
    print_credit(result, options.output)
    return 0
