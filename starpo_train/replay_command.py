"""`starpo-train replay`: its options, and what is done with them."""

import argparse
from pathlib import Path


def add_replay(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `replay`."""
    command.description = "Compare a checkpoint's actions with logged successes; docs/replay.md."
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="a model folder, or a run")
    command.add_argument("dataset", type=Path, metavar="DATASET")
    command.add_argument("--split", default="test")
    command.add_argument(
        "--threshold", type=float, default=1.0, metavar="R", help="a reward that is a success"
    )
    command.add_argument("--models", nargs="+", default=(), metavar="NAME")
    command.add_argument("--arguments", default="exact", metavar="MODE")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--max-tokens", type=int, metavar="N")
    command.add_argument("-o", "--output", type=Path, default=Path("replay"), metavar="DIR")
    command.set_defaults(handler=_replay)


def _replay(options: argparse.Namespace) -> int:
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from starpo_train.errors import ConfigError
    from starpo_train.replay.run import run_replay
    from starpo_train.replay.settings import ReplaySettings
    from starpo_train.replay.table import print_replay
    from starpo_train.run_folder import find_model

    output: Path = options.output
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise ConfigError(f"-o {output}: a folder, or a new one in a folder that exists.")
    settings = ReplaySettings(
        checkpoint=find_model(options.checkpoint),
        dataset=options.dataset,
        split=options.split,
        threshold=options.threshold,
        models=tuple(options.models),
        arguments=options.arguments,
        temperature=options.temperature,
        seed=options.seed,
        max_tokens=options.max_tokens,
    )
    disable_progress_bar()
    print_replay(run_replay(settings, output=output))
    Console(highlight=False, soft_wrap=True).print(f"written: {output}", markup=False)
    return 0
