"""SIGINT or SIGTERM -> a request to stop after the current step."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets `requested`; a second one interrupts.

    Until `begin` there is nothing to keep, and the first one interrupts too.
    """

    def __init__(self) -> None:
        self.requested = False
        self._has_begun = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Install the handlers; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the handlers back that were there before."""
        self._restore()

    def begin(self) -> None:
        """From here on a step is finished and committed before stopping."""
        self._has_begun = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._restore()
        if not self._has_begun:
            raise KeyboardInterrupt
        self.requested = True
        # not print: the signal may have come in the middle of one
        os.write(2, b"stopping after this step; once more to stop at once\n")

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
