"""`starpo-trace`: run a script with tracing, export a dataset, look at it, reward late, sign."""

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starpo_trace.collect.command import add_collect_command
from starpo_trace.convert.writers.command import add_write_command
from starpo_trace.dashboard_command import add_dashboard_command
from starpo_trace.doctor_command import add_doctor_command
from starpo_trace.errors import StarpoTraceError
from starpo_trace.export_command import add_export_command, run_export
from starpo_trace.forget_command import add_forget_commands
from starpo_trace.guard import mask_logs_with
from starpo_trace.latereward import record_late_reward
from starpo_trace.launch import run_program, split_arguments
from starpo_trace.plain import escape_controls
from starpo_trace.schema import REWARD_SOURCES
from starpo_trace.show_command import add_show_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line -> exit code: 0, or 1 with one line on stderr that says what to do."""
    given, program = list(sys.argv[1:] if arguments is None else arguments), []
    if given[:1] == ["run"]:
        own, program = split_arguments(given[1:])
        given = ["run", *own]
    options = _build_parser().parse_args(given)
    options.program = program
    mask_logs_with(_mask_log)
    try:
        if options.command is _run:  # the program's output and exceptions are its own
            return _run(options)
        return _run_own(options)
    except StarpoTraceError as error:
        print(f"starpo-trace: {escape_controls(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        what = "interrupted; nothing written" if options.command is run_export else "interrupted"
        print(f"starpo-trace: {what}", file=sys.stderr)
        return 130


def _run_own(options: argparse.Namespace) -> int:
    """Any command but `run`; a reader that goes away ends it quietly, as in `... | head`."""
    try:
        with _write_every_character():
            return options.command(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has no reader
        return 1
    except OSError as error:
        named = "" if error.filename is None else f"{error.filename}: "
        raise StarpoTraceError(f"{named}{error.strerror or error}") from error


@contextmanager
def _write_every_character() -> Iterator[None]:
    """Characters that the output's encoding lacks are written as their codes, as stderr has it."""
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):
        yield
        return
    errors = output.errors
    output.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        output.reconfigure(errors=errors)


def _mask_log(text: str) -> str:
    from starpo_trace.privacy.build import mask_by_default

    return mask_by_default(text)


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"starpo {version('starpo')}")
        parser.exit()


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="starpo-trace", description=__doc__)
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show it and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run a Python program with tracing on",
        usage="starpo-trace run [--store STORE] [--no-children] (SCRIPT | -m MODULE) [ARGS ...]",
    )
    run.add_argument("--store", type=Path, help="trace store folder (default: as instrument())")
    run.add_argument(
        "--children",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether Python processes that the program starts are recorded too (default: yes)",
    )
    run.set_defaults(command=_run)

    add_export_command(commands)
    add_forget_commands(commands)
    add_show_command(commands)
    add_write_command(commands)
    _add_reward_commands(commands)
    add_collect_command(commands)
    add_doctor_command(commands)
    add_dashboard_command(commands)
    return parser


def _add_reward_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    reward = commands.add_parser("reward", help="record a reward for a finished trajectory")
    reward.add_argument("--trajectory", required=True, metavar="ID")
    reward.add_argument("--value", required=True, type=float)
    reward.add_argument("--name", default="reward")
    reward.add_argument("--scope", choices=("trajectory", "turn", "step"), default="trajectory")
    reward.add_argument("--step", type=int, help="step it belongs to, for scope turn or step")
    reward.add_argument("--source", choices=REWARD_SOURCES, default="user")
    reward.add_argument("--min", type=float)
    reward.add_argument("--max", type=float)
    reward.add_argument("--explanation")
    reward.add_argument("--task", metavar="ID", help="the run's task, which a signature covers")
    reward.add_argument("--verifier-digest", metavar="HASH", help="what judged, under signature")
    reward.add_argument(
        "--key-file", type=Path, help="sign with its first key (default: STARPO_REWARD_KEY[_FILE])"
    )
    reward.add_argument("--id", dest="reward_id", help="a later reward with this id replaces it")
    reward.add_argument("--store", type=Path, help="trace store folder (default: as instrument())")
    reward.set_defaults(command=_reward)

    keys = commands.add_parser("keys", help="keys that sign rewards")
    new = keys.add_subparsers(required=True, metavar="ACTION").add_parser(
        "new", help="put a new key at the head of a key file"
    )
    new.add_argument("id", metavar="ID", help="name of the key, for rotation")
    new.add_argument(
        "--file",
        type=Path,
        default=Path("reward.keys"),
        metavar="FILE",
        help="key file (default: reward.keys)",
    )
    new.set_defaults(command=_new_key)


def _run(options: argparse.Namespace) -> int:
    run_program(options.program, store=options.store, has_children=options.children)


def _reward(options: argparse.Namespace) -> int:
    print(record_late_reward(options))
    return 0


def _new_key(options: argparse.Namespace) -> int:
    from starpo_trace.signing import write_new_key

    write_new_key(options.file, options.id)
    print(f"key {options.id} is the first of {options.file}; give it to verifiers, not to agents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
