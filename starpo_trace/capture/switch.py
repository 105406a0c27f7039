"""instrument() -> patched SDKs, and a process that is ready to fork and to end."""

import atexit
import os
import threading
from typing import TYPE_CHECKING

from starpo_trace.capture.leaving import finish_at_exit, leave_process, report_losses_at_exit
from starpo_trace.capture.runtime import Runtime, flush, get_runtime, replace_runtime
from starpo_trace.config import read_config
from starpo_trace.guard import Guard, mask_logs_with, warn_once
from starpo_trace.privacy import KEY_FILE_VARIABLE, KEY_VARIABLE, REDACTION_VARIABLE

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from starpo_trace.privacy.redaction import Redaction

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
        runtime = get_runtime()
        if runtime is not None:
            given = (store, endpoint, tracer_provider, history, policy_id)
            more = (sample, max_content_bytes)
            more += tuple(None if each is True else each for each in (redaction, metrics))
            is_asked_for_more = any(given) or any(each is not None for each in more)
            if is_asked_for_more and runtime.config != config:
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
        replace_runtime(begun)
        mask_logs_with(_mask_log)
        with Guard("patching the installed SDKs"):
            from starpo_trace.capture.patches import apply_patches

            apply_patches()
        with Guard("preparing for the end of the process"):
            from starpo_trace.store.exiting import Farewell, install_sigterm_handler
            from starpo_trace.store.forking import before_child_leaves

            before_child_leaves(leave_process)
            install_sigterm_handler(
                Farewell(
                    finish=finish_at_exit,
                    deliver=begun.shut_down,
                    flush=flush,
                    is_interrupted=begun.is_interrupted_here,
                )
            )


def uninstrument() -> None:
    """Undo `instrument()`: put back every patched attribute, flush, close what it opened.

    A run in progress ends here, as abandoned.
    """
    with _switch_lock:
        with Guard("ending the runs in progress"):
            from starpo_trace.capture.episode import abandon_open_trajectories

            abandon_open_trajectories("uninstrumented")
        runtime = replace_runtime(None)
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
        atexit.unregister(finish_at_exit)
        atexit.unregister(report_losses_at_exit)


def _mask_log(text: str) -> str:
    from starpo_trace.privacy.build import mask_by_default

    runtime = get_runtime()
    if runtime is None:
        return mask_by_default(text)
    redactor = runtime.redactor
    return text if redactor is None else redactor.redact_text(text)


class _Forking(threading.local):
    runtime: Runtime | None = None


_forking = _Forking()


def _before_fork() -> None:
    _forking.runtime = runtime = get_runtime()
    if runtime is not None:
        runtime.before_fork()


def _after_fork_in_parent() -> None:
    runtime, _forking.runtime = _forking.runtime, None
    if runtime is not None:
        runtime.after_fork()


def _after_fork_in_child() -> None:
    global _switch_lock  # noqa: PLW0603 (a thread of the parent may hold it)
    _switch_lock = threading.RLock()
    runtime = get_runtime()
    if runtime is not None:
        runtime.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
