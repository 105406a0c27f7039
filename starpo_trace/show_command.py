"""`starpo-trace show`: its options."""

import argparse
from typing import Any

from starpo_trace.arguments import parse_path
from starpo_trace.config import parse_bytes
from starpo_trace.errors import ConfigError

_MAX_SAMPLE = 20_000


def add_show_command(commands: Any) -> None:
    """Add `show` to the commands of `starpo-trace`."""
    parser = commands.add_parser("show", help="look at a dataset or a trace store")
    parser.add_argument("path", type=parse_path, metavar="DATASET|STORE")
    parser.add_argument("--trajectory", metavar="ID", help="one trajectory, step by step")
    parser.add_argument("--limit", type=int, default=20, help="trajectories to list (default: 20)")
    parser.add_argument(
        "--html",
        type=parse_path,
        metavar="FILE",
        help="write one page to look at in a browser instead",
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="trajectories that the page holds at most (default: 300)",
    )
    parser.add_argument(
        "--sample-bytes",
        type=_parse_bytes,
        metavar="N",
        help="and their size at most, as 20M (default: 8M)",
    )
    parser.set_defaults(command=_show)


def _show(options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: list at least 1 trajectory")
    try:
        import deltalake  # noqa: F401
        import polars  # noqa: F401
        from rich.console import Console
    except ImportError as error:
        raise ConfigError(
            f"show needs the package {error.name}: pip install 'starpo[dataset]'"
        ) from error
    if options.html is not None:
        return _write_page(options)
    if options.sample is not None or options.sample_bytes is not None:
        raise ConfigError("--sample and --sample-bytes bound the page; give --html FILE too")
    from starpo_trace.show import show_path

    show_path(
        options.path, Console(), trajectory_id=options.trajectory, max_trajectories=options.limit
    )
    return 0


def _write_page(options: argparse.Namespace) -> int:
    if options.trajectory is not None:
        raise ConfigError(
            "--trajectory is for the terminal; in the page add #t=ID to its address instead"
        )
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"show --html needs the package {error.name}: pip install 'starpo[dataset]'"
        ) from error
    from starpo_trace.look import page

    max_trajectories = page.MAX_TRAJECTORIES if options.sample is None else options.sample
    max_bytes = page.MAX_BYTES if options.sample_bytes is None else options.sample_bytes
    if not 0 <= max_trajectories <= _MAX_SAMPLE:
        raise ConfigError(f"--sample {max_trajectories}: give 0 to {_MAX_SAMPLE:,} trajectories")
    sample = page.write_page(
        options.path, options.html, max_trajectories=max_trajectories, max_bytes=max_bytes
    )
    print(f"{options.html}: {sample.num_shown:,} of {sample.num_all:,} trajectories")
    if sample.too_large:
        print(f"  {len(sample.too_large):,} more were chosen and did not fit (--sample-bytes)")
    return 0


def _parse_bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
