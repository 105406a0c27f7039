"""Command line of a Python program -> that program, in this process's place, recorded.

The program is run by Python itself, so that its `sys.argv`, `__main__`, tracebacks, signals and
exit code are what they are without us; `boot/sitecustomize.py` instruments it before its first
line.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from starpo_trace.errors import ConfigError

_BOOT_FOLDER: Final = str(Path(__file__).resolve().parent / "boot")
_FLAGS: Final = frozenset({"-h", "--help", "--children", "--no-children"})


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of `run` -> its own options, and the program with its arguments, untouched."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == "--store":
            position += 2
        elif argument in _FLAGS or argument.startswith("--store="):
            position += 1
        else:
            break
    return list(arguments[:position]), list(arguments[position:])


def run_program(program: Sequence[str], *, store: Path | None, has_children: bool) -> NoReturn:
    """Become `python PROGRAM...`; with `has_children` the Pythons that it starts are recorded too.

    Raises:
        ConfigError: there is no such script.
    """
    if not program:
        raise ConfigError("run: name a script, or -m and a module")
    if program[0] == "-m" and len(program) == 1:
        raise ConfigError("run -m: name a module")
    if program[0] != "-m" and not Path(program[0]).exists():
        raise ConfigError(f"{program[0]}: no such script")
    environment = dict(os.environ)
    own_path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([_BOOT_FOLDER, *([own_path] if own_path else ())])
    environment["STARPO_RUN_PID"] = str(os.getpid())
    environment["STARPO_RUN_CHILDREN"] = "1" if has_children else "0"
    environment.pop("STARPO_RUN_STORE", None)
    if store is not None:
        environment["STARPO_RUN_STORE"] = str(store.absolute())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *program], environment)  # noqa: S606 (no shell)
