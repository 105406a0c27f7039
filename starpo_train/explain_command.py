"""`starpo-train explain`: its options, and what is done with them."""

import argparse
from pathlib import Path


def add_explain(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `explain`."""
    command.add_argument("dataset", type=Path, metavar="DATASET")
    command.add_argument("--split", default="train")
    command.add_argument("--policy", metavar="ID", help="the policy that is to be trained")
    command.add_argument(
        "--baseline-policy", metavar="ID", help="whose token costs are the measure"
    )
    command.add_argument(
        "--model", metavar="PATH", help="and what this model's chat template does to it"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write all of it as JSON, too")
    command.add_argument(
        "--trajectories", type=Path, metavar="FILE", help="with --model: a line for each trajectory"
    )
    command.set_defaults(handler=_explain)


def _explain(options: argparse.Namespace) -> int:
    from starpo_train.dataset import read_trajectories
    from starpo_train.errors import ConfigError
    from starpo_train.explain_data import explain_data, print_explanation, write_explanation
    from starpo_train.progress import print_facts

    if options.trajectories is not None and options.model is None:
        raise ConfigError("--trajectories lists what a chat template does; give --model as well.")
    _require_folder("--json", options.json)
    _require_folder("--trajectories", options.trajectories)
    trajectories = read_trajectories(options.dataset, split=options.split)
    explanation = explain_data(
        options.dataset,
        trajectories,
        split=options.split,
        policy_id=options.policy,
        baseline_policy_id=options.baseline_policy,
    )
    print_facts(explanation.facts, title=f"{options.dataset} ({options.split})")
    print_explanation(explanation)
    values = explanation.describe()
    if options.model is not None:
        from starpo_train.explain import explain_rendering

        values["rendering"] = explain_rendering(
            options.dataset, trajectories, options.model, output=options.trajectories
        )
    if options.json is not None:
        write_explanation(options.json, values)
    return 0


def _require_folder(option: str, path: Path | None) -> None:
    """Before anything is read: a file that could not be written would be found out at the end."""
    from starpo_train.errors import ConfigError

    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}.")
