"""`starpo-train gate`: its options, and what is done with them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # nothing heavy: every command's parser comes by here
    from starpo_train.gate.margins import GateConfig
    from starpo_train.gate.plan import Plan


def add_gate(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `gate`."""
    command.description = (
        "Exit code: PROMOTE 0, BLOCK 10, INCONCLUSIVE 20; 2 on an error. docs/gate.md."
    )
    does = command.add_mutually_exclusive_group()
    does.add_argument("--plan", action="store_true", help="how many tasks, from a pilot's runs")
    does.add_argument("--verify", type=Path, metavar="VERDICT.json", help="is it as it was signed?")
    does.add_argument(
        "--rolled-back", type=Path, metavar="VERDICT.json", help="its release was taken back"
    )
    command.add_argument("--baseline", type=Path, metavar="DATASET")
    command.add_argument("--candidate", type=Path, metavar="DATASET")
    command.add_argument(
        "--evidence", type=named_path, action="append", default=[], metavar="NAME=DATASET"
    )
    command.add_argument("--ope", type=Path, metavar="OPE.json", help="beside the verdict")
    command.add_argument("--oracle", type=Path, metavar="DATASET", help="must solve every task")
    command.add_argument("--null", type=Path, metavar="DATASET", help="must solve none")
    command.add_argument(
        "--checkpoint", type=named_path, action="append", default=[], metavar="ROLE=DIR"
    )
    command.add_argument("--looks", type=Path, metavar="FILE", help="record of looks")
    command.add_argument("--releases", type=Path, metavar="FILE", help="record of releases")
    command.add_argument("--reason", default="", metavar="TEXT", help="of a rollback")
    command.add_argument("--key", type=Path, metavar="FILE", help="signs or verifies the verdict")
    command.add_argument(
        "--true-change", type=float, default=0.0, metavar="X", help="plan: assumed difference"
    )
    command.add_argument("--config", type=Path, metavar="GATE.toml")
    command.add_argument("-o", "--output", type=Path, metavar="DIR")
    command.set_defaults(handler=_gate)


def named_path(text: str) -> tuple[str, Path]:
    """`NAME=PATH` -> both, for argparse."""
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DATASET")
    return name, Path(path)


def _gate(options: argparse.Namespace) -> int:
    if options.verify is not None:
        return _verify(options)
    if options.rolled_back is not None:
        return _roll_back(options)
    return _plan(options) if options.plan else _decide(options)


def _decide(options: argparse.Namespace) -> int:
    from starpo_train.gate import VERDICT_FILE, GateExtras, run_gate

    _require(options, "baseline", "candidate", "output")
    preflight = {"oracle": options.oracle, "null": options.null}
    decision = run_gate(
        baseline=options.baseline,
        candidate=options.candidate,
        evidence=dict(options.evidence),
        config=_read_config(options),
        output=options.output,
        extras=GateExtras(
            preflight={agent: path for agent, path in preflight.items() if path is not None},
            ope=options.ope,
            checkpoints=dict(options.checkpoint),
            looks=options.looks,
            releases=options.releases,
            key_file=options.key,
        ),
    )
    console = _make_console()
    console.print(f"[bold]{decision.verdict}[/]: {_escape(decision.sentence)}")
    lines = [*decision.reasons, *decision.notes]
    if decision.ope is not None:
        lines.append(decision.ope["statement"])
    for line in lines:
        console.print(f"  {line}", markup=False)
    is_file = options.output.suffix == ".json"
    console.print(
        f"written: {options.output if is_file else options.output / VERDICT_FILE}", markup=False
    )
    if options.releases is not None:
        _print_rate(options.releases)
    return decision.exit_code


def _verify(options: argparse.Namespace) -> int:
    from starpo_train.gate.verify import verify_verdict

    found = verify_verdict(
        options.verify, key_file=options.key, checkpoints=dict(options.checkpoint)
    )
    console = _make_console()
    console.print(f"genuine, signed with key {found.key_id}", markup=False)
    console.print(f"[bold]{found.verdict}[/]: {_escape(found.sentence)}")
    if found.same:
        console.print(f"  unchanged: {', '.join(found.same)}", markup=False)
    if found.absent:
        console.print(f"  not here, so not compared: {', '.join(found.absent)}", markup=False)
    return found.exit_code


def _roll_back(options: argparse.Namespace) -> int:
    from starpo_train.gate.releases import roll_back

    _require(options, "releases")
    rate = roll_back(options.releases, options.rolled_back, reason=options.reason)
    _make_console().print(rate.describe(), markup=False)
    return 0


def _plan(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from starpo_train.gate.plan import plan_release
    from starpo_train.gate.run import read_rows
    from starpo_train.wholefile import write_atomically

    _require(options, "baseline")
    plan = plan_release(
        read_rows(options.baseline),
        None if options.candidate is None else read_rows(options.candidate),
        config=_read_config(options),
        true_change=options.true_change,
    )
    _print_plan(plan)
    if options.output is not None:
        is_file = options.output.suffix == ".json"
        target = options.output if is_file else options.output / "plan.json"
        write_atomically(target, json.dumps(asdict(plan), indent=2, allow_nan=False) + "\n")
        _make_console().print(f"written: {target}", markup=False)
    return 0


def _print_plan(plan: "Plan") -> None:
    from rich.table import Table

    console = _make_console()
    for part in plan.strata:
        pilot, reach = part.pilot, part.reach
        where = "" if pilot.stratum == "all" else f" ({pilot.stratum})"
        console.print(
            f"Pilot{where}: {pilot.num_tasks} tasks x {pilot.attempts:.3g} attempts, sigma_d "
            f"{pilot.sigma_d:.3f} (95% bound {pilot.sigma_d_high:.3f}).",
            markup=False,
        )
        if not plan.is_from_both:
            console.print(
                "  From the baseline's attempts alone: true differences between tasks come on top, "
                "so these are the fewest tasks.",
                markup=False,
            )
        elif pilot.within is not None:
            console.print(
                f"  One attempt's luck {pilot.within:.3f} (more attempts help), true differences "
                f"between tasks {pilot.between or 0:.3f} (only more tasks help).",
                markup=False,
            )
        table = Table(
            title=f"Tasks to PROMOTE with chance {plan.power:.0%} at a true difference of "
            f"{100 * plan.true_change:+.1f} points, alpha {plan.alpha:g}"
        )
        for name in ("margin", "attempts", "sigma_d", "tasks", "runs of both", "sequential"):
            table.add_column(name, justify="right")
        for row in part.rows:
            table.add_row(
                f"{100 * row.margin:g} points",
                str(row.attempts),
                f"{row.sigma_d:.3f}",
                _show(row.tasks),
                _show(row.runs),
                _show(row.tasks_sequential),
            )
        console.print(table)
        console.print(
            f"With these {reach.num_tasks} tasks and a margin of {100 * reach.margin:g} points, equal "
            f"policies get PROMOTE with chance {reach.promote_at_zero:.0%}. With chance "
            f"{plan.power:.0%}: equal policies pass a margin of {100 * reach.smallest_margin:.1f} "
            f"points, a gain of {100 * reach.smallest_gain:.1f} points is shown, a loss of "
            f"{100 * reach.smallest_loss:.1f} points is blocked."
            + (" They are fewer than gate.min_tasks, so nothing is." if reach.is_too_few else ""),
            markup=False,
        )


def _print_rate(releases: Path) -> None:
    from starpo_train.gate.releases import list_releases, measure_rollbacks

    rate = measure_rollbacks(list_releases(releases))
    _make_console().print(f"{releases}: {rate.describe()}", markup=False)


def _require(options: argparse.Namespace, *names: str) -> None:
    from starpo_train.errors import ConfigError

    missing = [name for name in names if getattr(options, name) is None]
    if missing:
        raise ConfigError(f"gate needs --{missing[0]}.")


def _read_config(options: argparse.Namespace) -> "GateConfig":
    from starpo_train.gate import GateConfig, read_gate_config

    return read_gate_config(options.config) if options.config else GateConfig()


def _make_console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _show(number: int | None) -> str:
    return "out of reach" if number is None else f"{number:,}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
