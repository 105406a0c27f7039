"""When the next request may go, and how long an endpoint that fails is waited for."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from starpo_train.judge.endpoint import PassingFailureError

T = TypeVar("T")


class Clock(Protocol):
    """Time, for tests to replace."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Wait; True: `stop` was set."""
        ...


class RealClock:
    """The time of this machine."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Wait; True: `stop` was set."""
        return stop.wait(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Limits of asking."""

    requests_per_s: float = 0.0
    """0: as fast as the threads go."""
    attempts: int = 6
    """Requests for one item before the endpoint counts as out of order."""
    first_wait_s: float = 1.0
    """Doubled with each failure."""
    longest_wait_s: float = 60.0
    """Also of a Retry-After: one that asks for more ends the run, to be started again later."""


class OutageError(Exception):
    """The endpoint keeps failing, or asks for more time than is granted."""


class StoppedError(Exception):
    """The run was stopped while this was waiting."""


class Pace:
    """Gives each request its moment; shared by the threads of one process."""

    def __init__(
        self, patience: Patience, stop: threading.Event, clock: Clock | None = None
    ) -> None:
        self._patience = patience
        self._stop = stop
        self._clock = clock or RealClock()
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._random = Random()  # noqa: S311 (spreads retries, keeps no secret)
        self.num_failures = 0
        """Requests that failed and were worth another try."""

    def keep_asking(self, ask: Callable[[], T]) -> T:
        """Call until it succeeds, waiting as long as the endpoint says, or longer each time.

        Raises:
            OutageError: too many failures, or a wait that is too long.
            StoppedError: the run was stopped.
        """
        for attempt in range(1, self._patience.attempts + 1):
            self._wait_turn()
            try:
                return ask()
            except PassingFailureError as error:
                with self._lock:
                    self.num_failures += 1
                self._hold(self._choose_wait(error, attempt))
        raise AssertionError  # the last attempt raises

    def _wait_turn(self) -> None:
        """Until the rate allows a request and no wait is on."""
        while True:
            if self._stop.is_set():
                raise StoppedError
            with self._lock:
                now_s = self._clock.now_s()
                wait_s = self._next_s - now_s
                if wait_s <= 0:
                    rate = self._patience.requests_per_s
                    self._next_s = now_s + (1 / rate if rate else 0.0)
                    return
            if self._clock.wait(self._stop, wait_s):
                raise StoppedError

    def _hold(self, wait_s: float) -> None:
        """Nobody asks before that."""
        with self._lock:
            self._next_s = max(self._next_s, self._clock.now_s() + wait_s)

    def _choose_wait(self, error: PassingFailureError, attempt: int) -> float:
        patience = self._patience
        if attempt == patience.attempts:
            raise OutageError(f"{error}, {attempt} times in a row") from error
        if error.wait_s is None:
            growing_s = patience.first_wait_s * 2.0 ** (attempt - 1)
            return min(patience.longest_wait_s, growing_s) * self._random.uniform(0.75, 1.0)
        if error.wait_s > patience.longest_wait_s:
            raise OutageError(f"{error}; it says to wait {error.wait_s:.0f} s") from error
        return error.wait_s
