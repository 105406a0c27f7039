"""Telling writers of background threads that they are now in a forked child, or about to leave one.

Children of `multiprocessing` by fork or forkserver leave by `os._exit`, without `atexit`; they do
run its own finalizers, which must be registered in the child after it has cleared the parent's.
"""

import os
import sys
import weakref
from collections.abc import Callable
from typing import Protocol

from starpo_trace.guard import Guard


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
_leaving: dict[Callable[[], object], None] = {}
_mark = _Mark()
_marked_modules: set[str] = set()


def watch_forks(forkable: Forkable) -> None:
    """Tell this object about forks for as long as it lives."""
    _watched.add(forkable)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _shut_down_at_exit_of_child(None)  # begun by spawn or forkserver: no fork of ours


def before_child_leaves(callback: Callable[[], object]) -> None:
    """Call this before a `multiprocessing` child leaves, and before forkables are shut down."""
    _leaving[callback] = None


def _before_fork() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is not None and util.__name__ not in _marked_modules:
        _marked_modules.add(util.__name__)
        util.register_after_fork(_mark, _shut_down_at_exit_of_child)


def _shut_down_at_exit_of_child(_: object) -> None:
    from multiprocessing import util

    util.Finalize(None, _leave, exitpriority=-100)


def _leave() -> None:
    for callback in list(_leaving):
        with Guard("ending what a leaving process left open"):
            callback()
    for forkable in list(_watched):
        with Guard("delivering the spans of a leaving process"):
            forkable.shutdown()


def inherits_grpc() -> bool:
    """Whether this process was forked from one that had loaded gRPC."""
    return _inherited.has_grpc


class _Inherited:
    has_grpc = False


_inherited = _Inherited()


def _after_fork_in_child() -> None:
    _inherited.has_grpc = "grpc._cython.cygrpc" in sys.modules
    for forkable in list(_watched):
        with Guard("beginning anew in a forked process"):
            forkable.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
