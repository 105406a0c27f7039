"""`starpo-trace`: run a script with tracing, export a dataset, look at it, reward late, sign."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from starpo_trace.collect.command import add_collect_command
from starpo_trace.errors import ConfigError, StarpoTraceError
from starpo_trace.guard import mask_logs_with
from starpo_trace.latereward import record_late_reward
from starpo_trace.launch import run_program, split_arguments
from starpo_trace.plain import escape_controls
from starpo_trace.schema import REWARD_SOURCES


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
        return options.command(options)
    except StarpoTraceError as error:
        print(f"starpo-trace: {escape_controls(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        what = "interrupted; nothing written" if options.command is _export else "interrupted"
        print(f"starpo-trace: {what}", file=sys.stderr)
        return 130


def _mask_log(text: str) -> str:
    from starpo_trace.privacy.build import mask_by_default

    return mask_by_default(text)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="starpo-trace", description=__doc__)
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

    export = commands.add_parser("export", help="trace stores and OTLP files -> dataset")
    export.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="DATASET")
    export.add_argument(
        "--test-fraction", type=float, default=0.0, help="share of the tasks held out as `test`"
    )
    export.add_argument(
        "--trust",
        action="append",
        choices=REWARD_SOURCES,
        help="reward source that counts; repeatable (default: environment, rule, user)",
    )
    export.add_argument(
        "--reward-keys", type=Path, metavar="FILE", help="count only rewards signed with these keys"
    )
    export.add_argument(
        "--require-signed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether unsigned rewards count for nothing (default: yes with --reward-keys)",
    )
    export.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="TOML file: what rewards make, shaping, groups, splits, what is left out",
    )
    export.set_defaults(command=_export)

    show = commands.add_parser("show", help="look at a dataset or a trace store")
    show.add_argument("path", type=Path, metavar="DATASET|STORE")
    show.add_argument("--trajectory", metavar="ID", help="one trajectory, step by step")
    show.add_argument("--limit", type=int, default=20, help="trajectories to list (default: 20)")
    show.set_defaults(command=_show)
    _add_write_command(commands)
    _add_reward_commands(commands)
    add_collect_command(commands)
    return parser


def _add_write_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    write = commands.add_parser("write", help="dataset -> conversations for other trainers")
    write.add_argument("dataset", type=Path, metavar="DATASET")
    write.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    write.add_argument(
        "--as",
        dest="form",
        choices=("openai", "trl"),
        default="openai",
        help="OpenAI's fine-tuning lines, or TRL's with reasoning (default: openai)",
    )
    write.add_argument("--split", choices=("train", "validation", "test"), help="only these tasks")
    write.add_argument("--min-reward", type=float, help="only trajectories with at least this")
    write.set_defaults(command=_write)


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
    new.add_argument("--file", type=Path, default=Path("reward.keys"), metavar="FILE")
    new.set_defaults(command=_new_key)


def _run(options: argparse.Namespace) -> int:
    run_program(options.program, store=options.store, has_children=options.children)


def _export(options: argparse.Namespace) -> int:
    from rich.console import Console

    from starpo_trace.convert.dataset import TRUST_SOURCES, build_dataset
    from starpo_trace.show import render_manifest

    with _hold_native_stderr():
        manifest = build_dataset(
            options.sources,
            options.output,
            test_fraction=options.test_fraction,
            trust_sources=options.trust or TRUST_SOURCES,
            reward_keys=options.reward_keys,
            require_signed=options.require_signed,
            recipe=options.recipe,
        )
    print(options.output)
    Console().print(render_manifest(manifest))
    return 0


@contextmanager
def _hold_native_stderr() -> Iterator[None]:
    """Keep what native code writes to stderr; show it unless an error says it in one line.

    On a full disk deltalake's threads panic, each with a report of its own.
    """
    sys.stderr.flush()
    own_stderr = os.dup(2)
    with TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        is_said = False
        try:
            yield
        except StarpoTraceError:
            is_said = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(own_stderr, 2)
            os.close(own_stderr)
            held.seek(0)
            if not is_said:
                os.write(2, held.read())


def _show(options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: list at least 1 trajectory")
    from rich.console import Console

    from starpo_trace.show import show_path

    show_path(
        options.path, Console(), trajectory_id=options.trajectory, max_trajectories=options.limit
    )
    return 0


def _write(options: argparse.Namespace) -> int:
    from starpo_trace.convert.chatfiles import write_chat_file

    report = write_chat_file(
        options.dataset,
        options.output,
        form=options.form,
        split=options.split,
        min_reward=options.min_reward,
    )
    print(
        f"{options.output}: {report.num_examples} conversations of "
        f"{report.num_trajectories} trajectories"
    )
    for reason, count in report.left_out.items():
        print(f"  left out: {count} trajectories, {reason}")
    return 0


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
