"""`starpo-train report`: its options, and what is done with them."""

import argparse
from pathlib import Path

from starpo_train.gate_command import named_path

_SOURCES = ("baseline", "candidate", "evidence", "run", "verdict", "dataset")


def add_report(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `report`."""
    command.description = "One HTML page about a release; docs/report.md says how to act on it."
    for role in ("baseline", "candidate", "evidence"):
        command.add_argument(
            f"--{role}", type=named_path, action="append", default=[], metavar="NAME=DATASET"
        )
    command.add_argument("--verdict", type=Path, metavar="VERDICT.json")
    command.add_argument("--key", type=Path, metavar="FILE", help="verifies the verdict")
    command.add_argument(
        "--scores", type=named_path, action="append", default=[], metavar="NAME=FILE.parquet",
        help="what `score` wrote of the dataset of the policy NAME",
    )  # fmt: skip
    command.add_argument(
        "--fail-below", type=float, default=0.5, metavar="X", help="scores that are a fail"
    )
    command.add_argument(
        "--credit", type=named_path, action="append", default=[], metavar="NAME=FILE.parquet",
        help="what `credit` wrote of it",
    )  # fmt: skip
    command.add_argument(
        "--judge", type=Path, action="append", default=[], metavar="DIR", help="output of `judge`"
    )
    command.add_argument(
        "--trace-link", metavar="URL", help="of a trace in a viewer, with {trace_id} in it"
    )
    command.add_argument("--run", type=Path, action="append", default=[], metavar="RUN_DIR")
    command.add_argument("--dataset", type=Path, metavar="DATASET", help="what was trained on")
    command.add_argument("--title", default="Release report")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PAGE.html")
    command.set_defaults(handler=_report)


def _report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from starpo_train.errors import ConfigError
    from starpo_train.report import PolicyResult, ReportExtras, render_report

    if not any(getattr(options, source) for source in _SOURCES):
        raise ConfigError(f"nothing to report on; give one of --{', --'.join(_SOURCES)}.")
    path = render_report(
        output=options.output,
        policies=[
            PolicyResult(name=name, dataset=dataset, role=role)
            for role in ("baseline", "candidate", "evidence")
            for name, dataset in getattr(options, role)
        ],
        verdict=options.verdict,
        runs=options.run,
        dataset=options.dataset,
        title=options.title,
        extras=ReportExtras(
            scores=dict(options.scores),
            credit=dict(options.credit),
            judges=tuple(options.judge),
            fail_below=options.fail_below,
            trace_link=options.trace_link,
            key_file=options.key,
        ),
    )
    Console(highlight=False, soft_wrap=True).print(f"written: {path}", markup=False)
    return 0
