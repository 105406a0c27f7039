"""Telling writers of background threads that they are now in a forked child."""

import os
import sys
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something with a thread or a file that a child must not share."""

    def after_fork_in_child(self) -> None:
        """Begin anew in a child process."""
        ...

    def shutdown(self) -> None:
        """Write what waits; called before a `multiprocessing` child leaves."""
        ...


class _Mark:
    """What `multiprocessing.util.register_after_fork` keeps by weak reference."""


_watched: "weakref.WeakSet[Forkable]" = weakref.WeakSet()
_mark = _Mark()
_marked_modules: set[str] = set()


def watch_forks(forkable: Forkable) -> None:
    """Tell this object about forks for as long as it lives."""
    _watched.add(forkable)


def _before_fork() -> None:
    # Children of `multiprocessing` leave by `os._exit`, without `atexit`; they do run its own
    # finalizers, which must be registered in the child after it has cleared the parent's.
    util = sys.modules.get("multiprocessing.util")
    if util is not None and util.__name__ not in _marked_modules:
        _marked_modules.add(util.__name__)
        util.register_after_fork(_mark, _shut_down_at_exit_of_child)


def _shut_down_at_exit_of_child(_: object) -> None:
    from multiprocessing import util

    def shut_down() -> None:
        for forkable in list(_watched):
            forkable.shutdown()

    util.Finalize(None, shut_down, exitpriority=-100)


def _after_fork_in_child() -> None:
    for forkable in list(_watched):
        forkable.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
