"""One instrument() -> a tracer whose destination is chosen at the first span, and where metrics go."""

import atexit
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from starpo_trace import semconv
from starpo_trace.config import CaptureConfig, HistoryMode, read_timeout
from starpo_trace.guard import Guard, warn, warn_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from starpo_trace.capture.destination import Destination
    from starpo_trace.capture.meters import Meters
    from starpo_trace.privacy.redactor import Redactor


_T = TypeVar("_T")


class Runtime:
    """One `instrument()`: its configuration, and the destination once a span needed it."""

    def __init__(self, config: CaptureConfig) -> None:
        self.config = config
        self.history_mode: HistoryMode = config.history or "full"
        self._lock = threading.RLock()
        self._tracer: Tracer | None = None
        self._own_provider: SdkTracerProvider | None = None
        self._provider: TracerProvider | None = None
        self._destinations: Sequence[Destination] = ()
        self._num_reported_lost = 0
        self._meters: Meters | None = None
        self.sdk_tracer: Tracer | None = None
        """Tracer of the provider that spans go to, once one did."""
        self.span_processor: object = None
        """Where its spans go, if it is one of the SDK's."""

    @property
    def has_own_provider(self) -> bool:
        """Whether spans go to a provider that Starpo opened, which nobody else uses."""
        return self._own_provider is not None

    @cached_property
    def redactor(self) -> "Redactor | None":
        """What masks content before anything is recorded; built when first needed."""
        from starpo_trace.privacy.build import build_redactor

        return build_redactor(self.config.redaction)

    def get_meters(self) -> "Meters | None":
        """Where measurements go; None where that is nowhere."""
        meters = self._meters
        return meters if meters is not None and meters.is_on else self._find_meters()

    def get_tracer(self) -> "Tracer":
        """Tracer of the chosen provider; the first call chooses."""
        if self._tracer is None:
            with self._lock:
                if self._tracer is None:
                    tracer = self._choose_provider().get_tracer(semconv.SCOPE_NAME, _read_version())
                    self.span_processor = getattr(tracer, "span_processor", None)
                    self.sdk_tracer = tracer
                    share = self.config.sample
                    if share is not None and self._own_provider is None:
                        from starpo_trace.capture.sampling import SamplingTracer

                        tracer = SamplingTracer(tracer, share)
                    self._tracer = tracer
        return self._tracer

    def follow_trajectories(self) -> None:
        """Leave out the spans of trajectories that are not recorded where they began."""
        from starpo_trace.capture.sampling import SamplingTracer

        tracer = self.get_tracer()
        with self._lock:
            if not isinstance(tracer, SamplingTracer):
                self._tracer = SamplingTracer(tracer, 1.0)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything accepted is on disk or exported, and metrics are recorded.

        The answer is about spans: metrics that did not arrive are said again by the next export.
        """
        end_s = time.monotonic() + timeout_s
        is_flushed = self._flush_spans(timeout_s)
        if self._meters is not None:
            self._meters.flush(max(0.0, end_s - time.monotonic()))
        return is_flushed

    def leave_metrics(self) -> None:
        """Export the last metrics."""
        if self._meters is not None:
            self._meters.leave()

    def _find_meters(self) -> "Meters | None":
        if self.config.metrics is False:
            return None
        meters = self._meters
        if meters is None or meters.is_wanted():
            with self._lock, Guard("looking where metrics go"):
                if self._meters is None:
                    from starpo_trace.capture.meters import Meters

                    self._meters = Meters(
                        self.config, read_version=_read_version, redact=self._redact
                    )
                meters = self._meters
                meters.prepare()
        return meters if meters is not None and meters.is_on else None

    def _redact(self, text: str) -> str:
        redactor = self.redactor
        return text if redactor is None else redactor.redact_text(text)

    def _flush_spans(self, timeout_s: float) -> bool:
        if self._provider is None:
            return True  # no span yet
        timeout_millis = int(timeout_s * 1000)
        if self._destinations:
            flushed = [each.force_flush(timeout_millis) for each in self._destinations]
            self.report_losses(is_final=False)
            return all(flushed)
        force_flush = getattr(self._provider, "force_flush", None)
        return force_flush is None or bool(force_flush(timeout_millis))

    def read_stats(self) -> dict[str, int]:
        """Counts of spans over all destinations of ours."""
        names = ("sent", "accepted", "acknowledged", "rejected", "waiting", "dropped")
        totals: dict[str, int] = dict.fromkeys(names, 0)
        for destination in self._destinations:
            for name, count in destination.read_stats().items():
                totals[name] += count
        return totals

    def report_losses(self, *, is_final: bool) -> None:
        """Log how many spans are lost, when there are more than at the last time.

        A span that waits is lost only at the end (`is_final`).
        """
        counts = self.read_stats()
        num_waiting = counts["waiting"] if is_final else 0
        num_lost = counts["dropped"] + counts["rejected"] + num_waiting
        if num_lost > self._num_reported_lost:
            self._num_reported_lost = num_lost
            warn(
                "starpo_trace lost %d of %d spans: %d were never stored or delivered, %d refused, "
                "%d dropped because too many waited. What is recorded is incomplete; free the "
                "disk, or check the store's path or the OTLP endpoint.",
                num_lost,
                counts["sent"],
                num_waiting,
                counts["rejected"],
                counts["dropped"],
            )

    def shut_down(self) -> None:
        """Flush and close what we opened; a provider of the user's is only flushed."""
        if self._own_provider is not None:
            self._own_provider.shutdown()
            self.report_losses(is_final=True)
        elif self._provider is not None:
            self.flush(5.0)

    def is_interrupted_here(self) -> bool:
        """Whether this thread was interrupted, by a signal say, where delivering waits for it."""
        return any(each.is_interrupted_here() for each in self._destinations)

    def load(self, load: "Callable[[], _T]") -> "_T":
        """Import what is needed from now on, while no other thread forks: a child must not see half."""
        with self._lock:
            return load()

    def before_fork(self) -> None:
        """Wait for a thread that imports, chooses the destination or records a metric."""
        self._lock.acquire()
        if self._meters is not None:
            self._meters.before_fork()

    def after_fork(self) -> None:
        """Let others go on."""
        if self._meters is not None:
            self._meters.after_fork()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Count anew."""
        self._lock = threading.RLock()
        if self._meters is not None:
            self._meters.after_fork_in_child()
        self._num_reported_lost = 0

    def _choose_provider(self) -> "TracerProvider":
        from opentelemetry import trace

        from starpo_trace.capture.destination import build_own_provider, is_set_by_user
        from starpo_trace.capture.leaving import finish_at_exit, report_losses_at_exit

        config = self.config
        has_explicit_destination = config.store is not None or config.endpoint is not None
        if config.tracer_provider is not None:
            self._provider = config.tracer_provider
        elif not has_explicit_destination and is_set_by_user(trace.get_tracer_provider()):
            self._provider = trace.get_tracer_provider()
        else:
            atexit.register(report_losses_at_exit)  # before the provider's own, so it runs last
            own = build_own_provider(config)
            self._provider = self._own_provider = own.provider
            self._destinations = own.destinations
            self.history_mode = own.history_mode
        # After the provider has registered its own, so that ours runs first.
        atexit.register(finish_at_exit)
        return self._provider


_runtime: Runtime | None = None
_was_instrumented = False


def replace_runtime(runtime: Runtime | None) -> Runtime | None:
    """Make this the instrumentation in force -> the one before it."""
    global _runtime, _was_instrumented  # noqa: PLW0603 (one instrumentation per process)
    before, _runtime = _runtime, runtime
    _was_instrumented = _was_instrumented or runtime is not None
    return before


def get_runtime() -> Runtime | None:
    """The instrumentation in force, if any."""
    return _runtime


def get_runtime_or_warn(call: str, *, lost: str | None = None) -> Runtime | None:
    """Return the instrumentation in force; without any, warn once that `call` records nothing.

    `lost` names what is gone for good with the call, and is warned of by itself. A process that
    was instrumented and no longer is has chosen so, and is not warned.
    """
    if _runtime is None and not _was_instrumented:
        warn_once(
            f"never instrumented {'' if lost is None else call}",
            "%s: %s; call `starpo_trace.instrument()` before it",
            call,
            "nothing is recorded in this process" if lost is None else f"{lost} is not recorded",
        )
    return _runtime


def flush(timeout_s: float | None = 5.0) -> bool:
    """Wait until every accepted span is on disk (local store) or exported.

    Args:
        timeout_s: Longest wait; infinity is a day, None or no number five seconds.

    Returns:
        True only when that is so and nothing was lost since the last flush; False after
        `timeout_s` seconds, or when the disk or the endpoint refused.
    """
    runtime = _runtime
    if runtime is None:
        return True
    with Guard("flushing"):
        return runtime.flush(read_timeout(timeout_s))
    return False


def stats() -> dict[str, int]:
    """Counts of spans so far: sent, accepted, acknowledged, rejected, waiting, dropped.

    `sent = accepted + rejected + dropped`, `accepted = acknowledged + waiting`. All are 0
    for a tracer provider of the user's, which keeps its own counts.
    """
    runtime = _runtime
    return {} if runtime is None else runtime.read_stats()


def _read_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("starpo")
    except PackageNotFoundError:
        return "unknown"
