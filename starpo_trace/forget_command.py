"""`starpo-trace forget` and `vacuum`: people and runs, or earlier versions, leave a dataset."""

import argparse

from starpo_trace.arguments import parse_path

_KINDS = ("user", "conversation", "trajectory")


def add_forget_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `forget` and `vacuum` to the command line."""
    forget = commands.add_parser(
        "forget", help="delete users, conversations or runs from a dataset and all its versions"
    )
    forget.add_argument("dataset", type=parse_path, metavar="DATASET")
    for kind in _KINDS:
        forget.add_argument(
            f"--{kind}", action="append", default=[], metavar="ID", help="repeatable"
        )
    forget.set_defaults(command=_forget)
    vacuum = commands.add_parser("vacuum", help="remove all versions of a dataset but the last")
    vacuum.add_argument("dataset", type=parse_path, metavar="DATASET")
    vacuum.set_defaults(command=_vacuum)


def _forget(options: argparse.Namespace) -> int:
    from starpo_trace.convert.forget import forget

    named = [(kind, name) for kind in _KINDS for name in getattr(options, kind)]
    manifest, num_gone = forget(options.dataset, named)
    print(f"{options.dataset}: {num_gone} trajectories deleted, earlier versions removed")
    places = sorted({entry["source"] for entry in manifest.sources})
    print(
        f"  not touched: the sources ({', '.join(places)}) and what was written or trained from "
        "earlier versions; later exports to this dataset leave them out"
    )
    return 0


def _vacuum(options: argparse.Namespace) -> int:
    from starpo_trace.convert.forget import vacuum

    print(f"{options.dataset}: {vacuum(options.dataset)} files of earlier versions removed")
    return 0
