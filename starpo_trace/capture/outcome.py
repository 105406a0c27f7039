"""How a run or a call ended, and what its recording is worth."""

from typing import Final, Literal

from opentelemetry.trace import Span, Status, StatusCode

from starpo_trace import semconv
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.config import HistoryMode
from starpo_trace.messages import dump_json, make_encodable, write_text

EndKind = Literal["terminated", "truncated", "abandoned", "error"]

_SFT_REASONS: Final = frozenset(
    {
        "token_ids_missing",
        "logprob_missing",
        "stream_incomplete",
        "unread_response",
        "partial_content",
        "reward_refused",
        "redacted",
    }
)
_NONE_REASONS: Final = frozenset({"history_off", "no_llm_call", "content_truncated"})


def judge_usability(
    num_calls: int, history_mode: HistoryMode, reasons: set[str]
) -> tuple[Literal["rl", "sft", "none"], list[str]]:
    """What a trajectory's recording is good for, and every reason against something better."""
    reasons = set(reasons)
    if history_mode == "off":
        reasons.add("history_off")
    if num_calls == 0:
        reasons.add("no_llm_call")
    if reasons & _NONE_REASONS:
        return "none", sorted(reasons)
    return ("sft" if reasons & _SFT_REASONS else "rl"), sorted(reasons)


def end_kind_of(error: BaseException | None) -> EndKind:
    """End of a run that its block was left by, with this exception or none."""
    if error is None:
        return "terminated"
    if isinstance(error, SystemExit) and (error.code is None or _is_zero(error.code)):
        return "terminated"  # the process ends well
    return "error" if isinstance(error, Exception) else "abandoned"


def _is_zero(code: object) -> bool:
    return isinstance(code, int) and code == 0


def mark_error(span: Span, error: BaseException, *, has_content: bool) -> None:
    """Record on a span that it failed; the message only where content may be recorded."""
    kind = type(error)
    span.set_attribute(semconv.ERROR_TYPE, name_error(error))
    if not has_content:
        span.set_status(Status(StatusCode.ERROR, kind.__name__))
        return
    message = _read_message(error)
    span.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {message}"))
    _record_body(span, error, message)


def name_error(error: BaseException) -> str:
    """Name of an exception's class, with its module."""
    kind = type(error)
    is_builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"


def _record_body(span: Span, error: BaseException, message: str) -> None:
    """Record what an SDK's exception says of the server's answer and its message does not.

    Among it may be what the model said: a call that its server refused.
    """
    body = getattr(error, "body", None)
    if not isinstance(body, dict) or all(str(value) in message for value in body.values()):
        return
    text = dump_json(body)
    runtime = get_runtime()
    redactor = None if runtime is None else runtime.redactor
    span.set_attribute(semconv.ERROR_BODY, text if redactor is None else redactor.redact_json(text))


def redact_text(text: object) -> str:
    """Text, or what stands where one belongs -> the text that may be recorded."""
    text = make_encodable(text if type(text) is str else write_text(text))
    runtime = get_runtime()
    redactor = None if runtime is None else runtime.redactor
    return text if redactor is None else redactor.redact_text(text)


def _read_message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (the user's own code)
        return "(its message cannot be read)"
    return redact_text(text)
