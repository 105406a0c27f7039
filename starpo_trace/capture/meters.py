"""Measurements -> a queue -> one thread that records them, and exports where nobody else does.

The agent pays for one `put`: it may happen in a signal handler or in the garbage collector, where
taking the SDK's locks could wait for ever. What is measured goes to the first of these that applies:
the given provider; the global MeterProvider, when the program has set one; the OTLP endpoint of the
standard variables.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics
from opentelemetry.metrics import NoOpMeterProvider, _internal

from starpo_trace.capture.instruments import Instruments
from starpo_trace.config import CaptureConfig, has_otlp_metrics
from starpo_trace.guard import Guard, warn_once

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from starpo_trace.capture.tally import Measured
    from starpo_trace.store.metricexport import OtlpMetrics

_UNSET: Final = (
    NoOpMeterProvider,
    getattr(_internal, "_ProxyMeterProvider", NoOpMeterProvider),
)
_MAX_WAITING: Final = 65_536
_LEAVE_S: Final = 2.0
"""How long the end of a process waits for the last metrics to arrive."""


class _Flush:
    """Somebody waits until what was put before is recorded and exported."""

    def __init__(self, *, timeout_s: float, is_last: bool) -> None:
        self.end_s = time.monotonic() + timeout_s
        self.is_last = is_last
        self.done = threading.Event()


class Meters:
    """The metrics of one `instrument()`, in this process."""

    def __init__(
        self,
        config: CaptureConfig,
        *,
        read_version: Callable[[], str],
        redact: Callable[[str], str],
    ) -> None:
        self._config = config
        self._read_version = read_version
        self._redact = redact
        self._has_otlp = has_otlp_metrics()
        self._names_provider = bool(os.environ.get("OTEL_PYTHON_METER_PROVIDER"))
        self._abandoned: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._messages: queue.SimpleQueue[Measured | _Flush] = queue.SimpleQueue()
        self._recording = threading.Lock()
        self._thread: threading.Thread | None = None
        self._own: OtlpMetrics | None = None
        self._provider: Any = None
        self._is_left = False

    @property
    def is_on(self) -> bool:
        """Whether what is put arrives somewhere."""
        return self._thread is not None

    def is_wanted(self) -> bool:
        """Whether there is somewhere to go, now."""
        if self._is_left:
            return False
        if self._has_otlp or self._config.metrics is not True:
            return True
        if self._is_unset_cheaply():
            return False
        return is_set(metrics.get_meter_provider())

    def _is_unset_cheaply(self) -> bool:
        """Whether no global provider is set, without the API's look into the environment.

        It is asked at each model call, where nothing is set.
        """
        return not self._names_provider and getattr(_internal, "_METER_PROVIDER", "") is None

    def prepare(self) -> None:
        """Begin, when there is somewhere to go; the runtime's lock is held."""
        if self._thread is not None or not self.is_wanted():
            return
        self._is_left = True  # what fails once is not tried again
        self._provider = provider = self._choose_provider()
        instruments = Instruments(
            provider,
            version=self._read_version(),
            fail_below=self._config.fail_below,
            redact=self._redact,
        )
        self._thread = threading.Thread(
            target=self._work,
            args=(self._messages, self._recording, instruments, self._own),
            name="starpo-metrics",
            daemon=True,
        )
        self._thread.start()
        self._is_left = False

    def put(self, measured: "Measured") -> None:
        """Hand over what was measured; never waits."""
        if self._thread is None:
            return
        if self._messages.qsize() >= _MAX_WAITING:
            warn_once("metrics queue", "too many measurements wait; further ones are not counted")
            return
        self._messages.put(measured)

    def flush(self, timeout_s: float, *, is_last: bool = False) -> bool:
        """Wait until all is recorded and exported; what pulls, as Prometheus does, is left alone."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return True
        message = _Flush(timeout_s=timeout_s, is_last=is_last)
        self._messages.put(message)
        return message.done.wait(timeout_s)

    def leave(self) -> None:
        """Export what is left; nothing more is measured."""
        if self._is_left:
            return
        self._is_left = True
        self.flush(_LEAVE_S, is_last=True)
        self._thread = None

    def before_fork(self) -> None:
        """Wait until no measurement is half recorded."""
        self._recording.acquire()

    def after_fork(self) -> None:
        """Go on."""
        self._recording.release()

    def after_fork_in_child(self) -> None:
        """Count from nothing: what was counted, and the connection, are the parent's."""
        self._abandoned.append((self._own, self._messages))
        self._reset()

    def _choose_provider(self) -> "MeterProvider":
        given = self._config.metrics
        if not isinstance(given, bool):
            return given
        provider = metrics.get_meter_provider()
        if is_set(provider):
            return provider
        from starpo_trace.store.metricexport import OtlpMetrics

        self._own = OtlpMetrics()
        return self._own.provider

    def _work(
        self,
        messages: "queue.SimpleQueue[Measured | _Flush]",
        recording: threading.Lock,
        instruments: Instruments,
        own: "OtlpMetrics | None",
    ) -> None:
        next_s = None if own is None else time.monotonic() + own.interval_s
        while True:
            try:
                message = messages.get(
                    timeout=None if next_s is None else max(0.0, next_s - time.monotonic())
                )
            except queue.Empty:
                message = None
            if isinstance(message, _Flush):
                try:
                    with Guard("exporting metrics"):
                        self._export(own, message)
                finally:
                    message.done.set()
                if message.is_last:
                    return
            elif message is not None:
                with recording, Guard("recording metrics"):
                    instruments.record(message)
            if own is not None and next_s is not None and time.monotonic() >= next_s:
                with Guard("exporting metrics"):
                    own.export()
                next_s = time.monotonic() + own.interval_s

    def _export(self, own: "OtlpMetrics | None", flush: _Flush) -> None:
        timeout_s = max(0.1, flush.end_s - time.monotonic())
        if own is not None:
            own.export(max_timeout_s=timeout_s)
        elif not flush.is_last:  # at its own end a provider of the user's exports by itself
            for reader in list_pushing_readers(self._provider):
                reader.force_flush(timeout_millis=timeout_s * 1000)


def is_set(provider: Any) -> bool:
    """Whether a global meter provider is one that the program has set."""
    return not isinstance(provider, _UNSET)


def list_pushing_readers(provider: Any) -> list[Any]:
    """Readers that export by themselves.

    Flushing one that is asked, as Prometheus's is, leaves what it collected for the next scrape, a
    second time.
    """
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers = getattr(provider, "_metric_readers", None)
    if readers is None:
        readers = getattr(getattr(provider, "_sdk_config", None), "metric_readers", ())
    return [reader for reader in readers if isinstance(reader, PeriodicExportingMetricReader)]
