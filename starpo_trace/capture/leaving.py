"""The end of a process -> what is open ends, what waits is delivered, what is lost is said."""

from starpo_trace.capture.runtime import get_runtime
from starpo_trace.guard import Guard


def finish_at_exit() -> None:
    """End open calls and runs, and export the last metrics."""
    with Guard("ending what the exiting process left open"):
        from starpo_trace.capture.episode import abandon_open_trajectories
        from starpo_trace.capture.invocation import finish_open_calls

        finish_open_calls()
        abandon_open_trajectories()
    runtime = get_runtime()
    if runtime is not None:
        with Guard("exporting the last metrics"):
            runtime.leave_metrics()


def leave_process() -> None:
    """What `atexit` does, for processes that leave without it."""
    runtime = get_runtime()
    if runtime is not None:
        finish_at_exit()
        runtime.shut_down()


def report_losses_at_exit() -> None:
    """Say what never arrived."""
    runtime = get_runtime()
    if runtime is not None:
        with Guard("counting lost spans"):
            runtime.report_losses(is_final=True)
