"""`starpo-trace doctor`: what is installed and recorded, where spans go, what would be missing."""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starpo_trace.arguments import parse_path
from starpo_trace.errors import StarpoTraceError
from starpo_trace.plain import escape_controls

if TYPE_CHECKING:
    from starpo_trace.doctor.finding import Finding
    from starpo_trace.doctor.installed import Installed

_MARKS: Final = {"ok": "ok", "note": " -", "problem": " !"}


def add_doctor_command(commands: Any) -> None:
    """Add `doctor` to the commands of `starpo-trace`."""
    parser = commands.add_parser(
        "doctor",
        help="say what is recorded here, where it goes, and what trajectories would lack",
        description="Says which installed packages are recorded and tested, where spans go, and "
        "what trajectories lack for training. Exits with 1 when there is a problem.",
    )
    parser.add_argument(
        "traces",
        nargs="?",
        type=parse_path,
        metavar="STORE|DATASET",
        help="what was recorded (default: the local store, where there is one)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.set_defaults(command=_examine)


def _examine(options: argparse.Namespace) -> int:
    from starpo_trace.capture.destination import choose_destinations
    from starpo_trace.doctor.installed import check_installed
    from starpo_trace.doctor.settings import (
        check_destination,
        check_metrics,
        check_settings,
        read_environment,
    )

    config, unusable = read_environment()
    logging.disable(logging.ERROR)  # what packages log while they are imported
    store, _ = choose_destinations(config)
    installed = check_installed(_show_progress if sys.stderr.isatty() else None)
    findings = {
        "Installed packages": [_judge(each) for each in installed],
        "Where spans go": list(check_destination(config)),
        "Where metrics go": list(check_metrics(config)),
        "Settings": [*unusable, *check_settings(config)],
    }
    traces = options.traces or (store if store is not None and store.is_dir() else None)
    findings["What was recorded" if traces is None else f"What is in {traces}"] = _look_at(traces)
    if options.json:
        print(json.dumps({name: [asdict(each) for each in f] for name, f in findings.items()}))
    else:
        _print(findings)
    return int(any(each.level == "problem" for f in findings.values() for each in f))


def _judge(installed: "Installed") -> "Finding":
    from starpo_trace.doctor.finding import Finding

    kind = "agents" if installed.is_framework else "model calls"
    what = f"{installed.package} {installed.version}: {kind}"
    if installed.failures:
        how = (
            f"partly recorded ({installed.num_patched} modules)"
            if installed.num_patched
            else "NOT recorded"
        )
        return Finding(
            level="problem",
            what=f"{what} {how}: {'; '.join(installed.failures)}",
            do=f"use a tested version: {installed.package} {installed.tested}"
            if installed.untested
            else "mend the installation",
        )
    if installed.untested:
        return Finding(
            level="note",
            what=f"{what} recorded; not tested with {', '.join(installed.untested)}",
        )
    return Finding(level="ok", what=f"{what} recorded, tested with {installed.tested}")


def _look_at(traces: Path | None) -> "list[Finding]":
    from starpo_trace.doctor.finding import Finding

    if traces is None:
        return [
            Finding(
                level="note",
                what="nothing yet, in a local store: whether runs have tasks and rewards is not known",
                do="run the agent, or name what it recorded: starpo-trace doctor STORE",
            )
        ]
    try:
        from starpo_trace.doctor.recorded import check_recorded
    except ImportError as error:
        return [
            Finding(
                level="note",
                what=f"not looked at: the package {error.name} is missing",
                do="pip install 'starpo[dataset]'",
            )
        ]
    try:
        return list(check_recorded(traces))
    except (StarpoTraceError, OSError) as error:
        return [Finding(level="problem", what=str(error))]


def _show_progress(package: str) -> None:
    print(f"\r\x1b[K{package} ...", end="", file=sys.stderr, flush=True)


def _print(findings: "dict[str, list[Finding]]") -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    for name, group in findings.items():
        print(escape_controls(name))
        for each in group:
            print(f"  {_MARKS[each.level]}  {escape_controls(each.what)}")
            if each.do:
                print(f"        {each.do}")
        if not group:
            print("      nothing")
