"""`starpo-train ope`: its options, and what is done with them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nothing heavy: every command's parser comes by here
    from starpo_train.ope.settings import OpeSettings


def add_ope(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `ope`."""
    command.description = "Off-policy evaluation of recorded turns; docs/ope.md."
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="a model folder, or a run")
    command.add_argument("dataset", type=Path, metavar="DATASET")
    command.add_argument("--split", default="test")
    command.add_argument("--json", type=Path, default=Path("ope.json"), metavar="FILE")
    command.add_argument(
        "--samples", type=int, default=0, metavar="M", help="candidate turns per state: DR and FQE"
    )
    command.add_argument("--models", nargs="+", default=(), metavar="NAME")
    command.add_argument("--logprobs", choices=("raw", "processed"), default="raw")
    command.add_argument("--behaviour", type=Path, metavar="DIR")
    command.add_argument("--gamma", type=float, default=1.0)
    command.add_argument("--process-reward-weight", type=float, default=0.0, metavar="W")
    command.add_argument("--cluster", choices=("task", "user"), default="task")
    command.add_argument("--device", default="auto")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(handler=_ope)


def _ope(options: argparse.Namespace) -> int:
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from starpo_train.ope.run import run_ope
    from starpo_train.ope.table import print_ope

    disable_progress_bar()
    print_ope(run_ope(_read_options(options), output=options.json))
    Console(highlight=False, soft_wrap=True).print(f"written: {options.json}", markup=False)
    return 0


def _read_options(options: argparse.Namespace) -> "OpeSettings":
    from starpo_train.errors import ConfigError
    from starpo_train.ope.settings import OpeSettings
    from starpo_train.run_folder import find_model

    folder = options.json.parent
    if not folder.is_dir():
        raise ConfigError(f"--json {options.json}: there is no folder {folder}.")
    return OpeSettings(
        checkpoint=find_model(options.checkpoint),
        dataset=options.dataset,
        split=options.split,
        models=tuple(options.models),
        logprobs=options.logprobs,
        behaviour=options.behaviour,
        gamma=options.gamma,
        process_reward_weight=options.process_reward_weight,
        cluster=options.cluster,
        samples=options.samples,
        device=options.device,
        seed=options.seed,
    )
