"""`starpo-trace export`: span sources -> dataset, with a progress bar on a terminal."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from starpo_trace.arguments import parse_path, parse_source
from starpo_trace.convert.executors import EXECUTORS
from starpo_trace.errors import DatasetError, StarpoTraceError
from starpo_trace.schema import REWARD_SOURCES

if TYPE_CHECKING:
    from rich.progress import TaskID

    from starpo_trace.convert.manifest import Manifest


def add_export_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` to the command line."""
    export = commands.add_parser("export", help="trace stores, span files, buckets -> dataset")
    export.add_argument("sources", nargs="+", type=parse_source, metavar="SOURCE")
    export.add_argument("-o", "--output", type=parse_path, required=True, metavar="DATASET")
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
        "--reward-keys",
        type=parse_path,
        metavar="FILE",
        help="count only rewards signed with these keys",
    )
    export.add_argument(
        "--require-signed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether unsigned rewards count for nothing (default: yes with --reward-keys)",
    )
    export.add_argument(
        "--content",
        type=parse_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="read messages that spans only name (`*_ref`) from this folder too; repeatable",
    )
    export.add_argument(
        "--recipe",
        type=parse_path,
        metavar="FILE",
        help="TOML file: what rewards make, shaping, groups, splits, what is left out",
    )
    export.add_argument(
        "--full", action="store_true", help="read and build everything again, not only what is new"
    )
    export.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="serial",
        help="this process, processes of this machine, or a Ray cluster (default: serial)",
    )
    export.add_argument(
        "--workers", type=int, metavar="N", help="processes or Ray tasks at a time (default: CPUs)"
    )
    export.set_defaults(command=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Options -> dataset, and its numbers on the terminal."""
    from rich.console import Console

    from starpo_trace.convert.dataset import TRUST_SOURCES, build_dataset
    from starpo_trace.show import render_curation, render_manifest

    before = _read_last(options.output)
    with _hold_native_stderr() as terminal, _show_progress(terminal) as progress:
        manifest = build_dataset(
            options.sources,
            options.output,
            test_fraction=options.test_fraction,
            trust_sources=options.trust or TRUST_SOURCES,
            reward_keys=options.reward_keys,
            require_signed=options.require_signed,
            content_folders=options.content,
            recipe=options.recipe,
            full=options.full,
            executor=options.executor,
            num_workers=options.workers,
            progress=progress,
        )
    for line in () if before is None else _describe_losses(before, manifest):
        print(f"starpo-trace: {line}", file=sys.stderr)
    print(options.output)
    console = Console()
    console.print(render_manifest(manifest))
    for line in render_curation(manifest.curation):
        console.print(line, soft_wrap=True)
    return 0


def _read_last(output: Path) -> "Manifest | None":
    """The dataset's manifest until now; None where there is none."""
    from starpo_trace.convert.manifest import read_manifest

    with suppress(DatasetError):
        return read_manifest(output)
    return None


def _describe_losses(before: "Manifest", now: "Manifest") -> Iterator[str]:
    """What the last version had and this one lacks, as the command was given otherwise."""
    names, left = ({entry["source"] for entry in each.sources} for each in (before, now))
    if gone := sorted(names - left):
        yield (
            f"{', '.join(gone)}: no longer among the sources, so its runs are not in this version; to "
            "keep both, name both"
        )
    held_out = [
        each.curation.get("splits", {}).get("test", {}).get("trajectories", 0)
        for each in (before, now)
    ]
    if held_out[0] and not held_out[1]:
        fraction = before.parameters.get("test_fraction")
        how = f"--test-fraction {fraction:g}" if fraction else "the recipe of then"
        yield f"{held_out[0]} trajectories were held out as `test` and none is now; {how} does it again"


@contextmanager
def _show_progress(
    terminal: IO[str],
) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """A bar for each stage; nothing where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not terminal.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeElapsedColumn(), console=Console(file=terminal)) as bars:

        def tell(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks and total != 0:
                tasks[stage] = bars.add_task(stage, total=total)
            if stage in tasks:
                bars.update(tasks[stage], completed=done, total=total or done)

        yield tell


@contextmanager
def _hold_native_stderr() -> Iterator[IO[str]]:
    """Keep what native code writes to stderr; show it unless an error says it in one line.

    On a full disk deltalake's threads panic, each with a report of its own. Yields the stream
    that still leads to the terminal.
    """
    sys.stderr.flush()
    own_stderr = os.dup(2)
    with TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        is_said = False
        try:
            with os.fdopen(os.dup(own_stderr), "w") as terminal:
                yield terminal
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
