"""One process at a time in a folder; the lock of a dead process is free."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from starpo_train.errors import ConfigError

LOCK_FILE = ".lock"


def lock_folder(folder: Path, *, doing: str) -> IO[str] | None:
    """An open file that holds the folder until it is closed; None on a file system without locks.

    Raises:
        ConfigError: another process has it; `doing` says what it is at.
    """
    try:
        lock = (folder / LOCK_FILE).open("w", encoding="utf-8")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"{folder}: another process is {doing}; wait until it has ended, or stop it."
        ) from None
    except OSError:
        lock.close()
        return None
    return lock


@contextmanager
def hold_folder(folder: Path, *, doing: str) -> Iterator[None]:
    """`lock_folder` for as long as something is done.

    Raises:
        ConfigError: as there.
    """
    lock = lock_folder(folder, doing=doing)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()
