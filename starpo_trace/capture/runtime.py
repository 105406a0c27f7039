"""instrument() -> patched SDKs, and a tracer whose destination is chosen at the first span."""

import atexit
import os
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from starpo_trace import semconv
from starpo_trace.config import CaptureConfig, HistoryMode, read_config, read_timeout
from starpo_trace.guard import Guard, mask_logs_with, warn, warn_once
from starpo_trace.privacy import KEY_FILE_VARIABLE, KEY_VARIABLE, REDACTION_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from starpo_trace.capture.destination import Destination
    from starpo_trace.capture.meters import Meters
    from starpo_trace.privacy.redaction import Redaction
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

        config = self.config
        has_explicit_destination = config.store is not None or config.endpoint is not None
        if config.tracer_provider is not None:
            self._provider = config.tracer_provider
        elif not has_explicit_destination and is_set_by_user(trace.get_tracer_provider()):
            self._provider = trace.get_tracer_provider()
        else:
            atexit.register(_report_losses_at_exit)  # before the provider's own, so it runs last
            own = build_own_provider(config)
            self._provider = self._own_provider = own.provider
            self._destinations = own.destinations
            self.history_mode = own.history_mode
        # After the provider has registered its own, so that ours runs first.
        atexit.register(_finish_at_exit)
        return self._provider


_runtime: Runtime | None = None
_was_instrumented = False
_switch_lock = threading.RLock()


def instrument(  # noqa: PLR0913 (one keyword per setting)
    *,
    store: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
    tracer_provider: "TracerProvider | None" = None,
    history: str | None = None,
    policy_id: str | None = None,
    sample: float | None = None,
    max_content_bytes: int | None = None,
    redaction: "Redaction | bool" = True,
    metrics: "MeterProvider | bool" = True,
) -> None:
    """Record every LLM call of this process from now on. Calling it again changes nothing.

    Spans go to the first of these that applies, decided when the first span begins: the given
    `tracer_provider`; the given `store` folder and / or OTLP/HTTP `endpoint`; the global tracer
    provider, when the program has set one; the endpoint in `OTEL_EXPORTER_OTLP_ENDPOINT`; the
    local store in `STARPO_STORE`, else `./.starpo/traces`.

    Args:
        store: Folder of a local trace store.
        endpoint: Full OTLP/HTTP traces URL, like `http://collector:4318/v1/traces`.
        tracer_provider: Provider to use; it is never shut down by Starpo.
        history: `"full"` (each call's whole prompt), `"delta"` (only what is new) or `"off"`.
            Default: delta into the local store, full elsewhere; off whenever
            `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` says so.
        policy_id: Checkpoint or prompt version of trajectories that name none.
        sample: Share of trajectories to record, whole ones, in every process that has a part of
            them; default `STARPO_SAMPLE`, else all.
        max_content_bytes: Longest content attribute; in a longer one the longest strings are
            replaced by marks, and the trajectory is fit for no training. Default
            `STARPO_MAX_CONTENT_BYTES`, else no limit.
        redaction: What is masked before anything is recorded: True for the built-in secret rules,
            a `Redaction` for more, False for nothing. `STARPO_REDACTION` (on | off) wins.
        metrics: Where runs are counted (docs/live.md): True for the global MeterProvider, when the
            program has set one, else the OTLP endpoint in `OTEL_EXPORTER_OTLP_ENDPOINT`; a provider
            for that one, False for nowhere. `STARPO_METRICS=off` wins.

    Raises:
        ConfigError: an argument cannot be used. A variable that cannot is only warned of.
    """
    global _runtime, _was_instrumented  # noqa: PLW0603 (one instrumentation per process)
    config = read_config(
        store=store,
        endpoint=endpoint,
        tracer_provider=tracer_provider,
        history=history,
        policy_id=policy_id,
        sample=sample,
        max_content_bytes=max_content_bytes,
        redaction=redaction,
        metrics=metrics,
    )
    with _switch_lock:
        if _runtime is not None:
            given = (store, endpoint, tracer_provider, history, policy_id)
            more = (sample, max_content_bytes)
            more += tuple(None if each is True else each for each in (redaction, metrics))
            is_asked_for_more = any(given) or any(each is not None for each in more)
            if is_asked_for_more and _runtime.config != config:
                warn_once(
                    "instrument again",
                    "instrument() was called again with other arguments, which are ignored; "
                    "call uninstrument() first",
                )
            return
        begun = Runtime(config)
        names = (REDACTION_VARIABLE, KEY_VARIABLE, KEY_FILE_VARIABLE)
        if redaction is not True or not os.environ.keys().isdisjoint(names):
            _ = begun.redactor  # a setting that cannot be used is said here, not at the first call
        _runtime = begun
        _was_instrumented = True
        mask_logs_with(_mask_log)
        with Guard("patching the installed SDKs"):
            from starpo_trace.capture.patches import apply_patches

            apply_patches()
        with Guard("preparing for the end of the process"):
            from starpo_trace.store.exiting import Farewell, install_sigterm_handler
            from starpo_trace.store.forking import before_child_leaves

            before_child_leaves(_leave_process)
            install_sigterm_handler(
                Farewell(
                    finish=_finish_at_exit,
                    deliver=_runtime.shut_down,
                    flush=flush,
                    is_interrupted=_runtime.is_interrupted_here,
                )
            )


def uninstrument() -> None:
    """Undo `instrument()`: put back every patched attribute, flush, close what it opened.

    A run in progress ends here, as abandoned.
    """
    global _runtime
    with _switch_lock:
        with Guard("ending the runs in progress"):
            from starpo_trace.capture.episode import abandon_open_trajectories

            abandon_open_trajectories("uninstrumented")
        runtime, _runtime = _runtime, None
        if runtime is None:
            return
        with Guard("removing patches"):
            from starpo_trace.capture.patches import remove_patches
            from starpo_trace.store.exiting import remove_sigterm_handler

            remove_patches()
            remove_sigterm_handler()
        with Guard("closing open spans"):
            from starpo_trace.capture.invocation import finish_open_calls

            finish_open_calls()
        with Guard("exporting the last metrics"):
            runtime.leave_metrics()
        with Guard("closing the span destination"):
            runtime.shut_down()
        atexit.unregister(_finish_at_exit)
        atexit.unregister(_report_losses_at_exit)


def _mask_log(text: str) -> str:
    from starpo_trace.privacy.build import mask_by_default

    if _runtime is None:
        return mask_by_default(text)
    redactor = _runtime.redactor
    return text if redactor is None else redactor.redact_text(text)


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


def _finish_at_exit() -> None:
    with Guard("ending what the exiting process left open"):
        from starpo_trace.capture.episode import abandon_open_trajectories
        from starpo_trace.capture.invocation import finish_open_calls

        finish_open_calls()
        abandon_open_trajectories()
    runtime = _runtime
    if runtime is not None:
        with Guard("exporting the last metrics"):
            runtime.leave_metrics()


def _leave_process() -> None:
    """What `atexit` does, for processes that leave without it."""
    runtime = _runtime
    if runtime is not None:
        _finish_at_exit()
        runtime.shut_down()


class _Forking(threading.local):
    runtime: Runtime | None = None


_forking = _Forking()


def _before_fork() -> None:
    _forking.runtime = _runtime
    if _runtime is not None:
        _runtime.before_fork()


def _after_fork_in_parent() -> None:
    runtime, _forking.runtime = _forking.runtime, None
    if runtime is not None:
        runtime.after_fork()


def _after_fork_in_child() -> None:
    global _switch_lock  # noqa: PLW0603 (a thread of the parent may hold it)
    _switch_lock = threading.RLock()
    if _runtime is not None:
        _runtime.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _report_losses_at_exit() -> None:
    runtime = _runtime
    if runtime is not None:
        with Guard("counting lost spans"):
            runtime.report_losses(is_final=True)


def _read_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("starpo")
    except PackageNotFoundError:
        return "unknown"
