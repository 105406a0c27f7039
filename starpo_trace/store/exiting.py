"""SIGTERM -> what the process leaves open is ended and delivered, then it dies as it would have.

With Python's default handler SIGTERM ends a process without `atexit`, so the spans of its last
moments, and the ends of its open trajectories, would be lost wherever containers are stopped.
"""

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Final

from starpo_trace.guard import Guard, warn_once

_FINISH_TIMEOUT_S: Final = 1.0
_DELIVER_TIMEOUT_S: Final = 4.0
_COME_BACK_S: Final = 0.01
_OFF_VALUES: Final = frozenset({"0", "false", "off", "no"})
_ON_VALUES: Final = frozenset({"", "1", "true", "on", "yes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """What to do before the process dies."""

    finish: Callable[[], object]
    """Ends open spans."""
    deliver: Callable[[], object]
    """Delivers what waits and closes the destination."""
    flush: Callable[[], object]
    """Delivers what waits, in a process that goes on."""
    is_interrupted: Callable[[], bool]
    """Whether the main thread was interrupted where these would wait for it for ever."""


class _Installed:
    farewell: Farewell | None = None
    is_handling = False


def install_sigterm_handler(
    farewell: Farewell, environment: Mapping[str, str] = os.environ
) -> bool:
    """Handle SIGTERM, unless the program does, or `STARPO_SIGTERM=0`; returns whether.

    A handler that the program installs later replaces this one.
    """
    switch = environment.get("STARPO_SIGTERM", "").strip().lower()
    if switch not in _OFF_VALUES | _ON_VALUES:
        warn_once(
            "variable STARPO_SIGTERM",
            "STARPO_SIGTERM=%r in the environment cannot be used: say 0 or 1; SIGTERM is handled",
            switch,
        )
    if (
        switch in _OFF_VALUES
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, _handle}
    ):
        return False
    _Installed.farewell = farewell
    _Installed.is_handling = False
    signal.signal(signal.SIGTERM, _handle)
    return True


def remove_sigterm_handler() -> None:
    """Put the default action back, where ours is still in place."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _handle
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _Installed.farewell = None  # a handler that cannot be removed here only dies


def _handle(number: int, _frame: FrameType | None) -> None:
    farewell = _Installed.farewell
    if farewell is None or _Installed.is_handling:  # asked twice: at once, then
        _die(number)
        return
    if farewell.is_interrupted():
        _thread.start_new_thread(_signal_again, (number,))
        return
    if os.getpid() == 1:
        # The kernel spares a first process without a handler; it is killed later, or never.
        _run_in_time(farewell.flush, _DELIVER_TIMEOUT_S)
        return
    _Installed.is_handling = True
    _run_in_time(farewell.finish, _FINISH_TIMEOUT_S)
    _run_in_time(farewell.deliver, _DELIVER_TIMEOUT_S)
    _die(number)


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _signal_again(number: int) -> None:
    time.sleep(_COME_BACK_S)
    os.kill(os.getpid(), number)


def _run_in_time(work: Callable[[], object], timeout_s: float) -> None:
    """Run in a thread, because this one may hold a lock that the work needs."""
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            with Guard("saving spans at SIGTERM"):
                work()
        finally:
            done.release()

    # Not `threading.Thread`: its `start` takes a lock that the interrupted code may hold.
    _thread.start_new_thread(run, ())
    done.acquire(timeout=timeout_s)
