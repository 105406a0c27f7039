"""The one place that catches what telemetry itself gets wrong.

A fault of Starpo's never reaches the agent it records: it is logged once per place and kind, and
the agent goes on. Under pytest, or with `STARPO_DEBUG=1`, it is raised instead, so that tests see
it; `STARPO_DEBUG=0` switches that off.
"""

import logging
import os
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Final

_LOGGER: Final = logging.getLogger("starpo_trace")
_reported: set[tuple[str, type[BaseException]]] = set()
_mask: Callable[[str], str] | None = None


class Guard:
    """Context manager around telemetry's own work: swallows and reports its `Exception`s."""

    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        """`doing` completes the sentence "failed while ..."."""
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        report_failure(self._doing, error)
        return not is_debugging()


def handle_failure(doing: str, error: Exception) -> None:
    """What a `Guard` does, inside an `except` clause: report, and raise again when debugging."""
    report_failure(doing, error)
    if is_debugging():
        raise error


def report_failure(doing: str, error: BaseException) -> None:
    """Log a fault of telemetry's, the first time it happens at this place."""
    key = (doing, type(error))
    if key in _reported or is_debugging():
        return
    _reported.add(key)
    text = (
        f"starpo_trace failed while {doing}; the agent is not affected, but this part of its "
        "recording is missing (further failures of this kind are not logged)"
    )
    shown = "".join(traceback.format_exception(error))
    masked = _redact(shown)
    if masked == shown:
        _LOGGER.warning("%s", text, exc_info=error)
    else:
        _LOGGER.warning("%s\n%s", text, masked)


def warn_once(key: str, message: str, *args: object) -> None:
    """Log a condition that the agent's owner should know, once per process."""
    if (key, Warning) not in _reported:
        _reported.add((key, Warning))
        warn(message, *args)


def warn(message: str, *args: object) -> None:
    """Log a condition that the agent's owner should know."""
    text = message % args if args else message
    masked = _redact(text)
    if masked == text:
        _LOGGER.warning(message, *args)
    else:
        _LOGGER.warning("%s", masked)


def mask_logs_with(mask: Callable[[str], str]) -> None:
    """Pass every text through `mask` before it is logged: exceptions quote what agents work with."""
    global _mask  # noqa: PLW0603 (one log per process)
    _mask = mask


def _redact(text: str) -> str:
    try:
        return text if _mask is None else _mask(text)
    except Exception:  # noqa: BLE001 (of two failures, the one that is being reported counts)
        return "(what happened cannot be shown: it could not be searched for secrets)"


def is_debugging() -> bool:
    """Whether faults of telemetry's are raised."""
    debug = os.environ.get("STARPO_DEBUG")
    if debug is not None:
        return debug.lower() not in {"", "0", "false"}
    return "PYTEST_CURRENT_TEST" in os.environ
