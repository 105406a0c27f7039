"""Why a request was not taken -> the answer that OTLP gives to it over HTTP and over gRPC."""

from dataclasses import dataclass
from enum import Enum

from starpo_trace.errors import StarpoTraceError


@dataclass(frozen=True, slots=True)
class _Answer:
    http_status: int
    grpc_code: int
    retry_after_s: int | None = None


class Reason(Enum):
    """Kinds of refusal; the value is the name under which they are counted."""

    MALFORMED = "malformed"
    UNAUTHENTICATED = "unauthenticated"
    NOT_FOUND = "not_found"
    METHOD = "method"
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"


# gRPC: too large is INVALID_ARGUMENT, because exporters retry RESOURCE_EXHAUSTED.
_ANSWERS = {
    Reason.MALFORMED: _Answer(400, 3),
    Reason.UNAUTHENTICATED: _Answer(401, 16),
    Reason.NOT_FOUND: _Answer(404, 12),
    Reason.METHOD: _Answer(405, 12),
    Reason.TIMEOUT: _Answer(408, 4),
    Reason.DISCONNECTED: _Answer(400, 1),
    Reason.TOO_LARGE: _Answer(413, 3),
    Reason.UNSUPPORTED: _Answer(415, 3),
    Reason.BUSY: _Answer(429, 8, retry_after_s=1),
    Reason.UNAVAILABLE: _Answer(503, 14, retry_after_s=5),
}


class RefusedError(StarpoTraceError):
    """A request that was not taken; nothing of it is acknowledged."""

    def __init__(self, reason: Reason, message: str) -> None:
        """`message` is sent to the client."""
        super().__init__(message)
        self.reason = reason

    @property
    def http_status(self) -> int:
        """Status of the HTTP answer."""
        return _ANSWERS[self.reason].http_status

    @property
    def grpc_code(self) -> int:
        """Number of the `google.rpc.Code`."""
        return _ANSWERS[self.reason].grpc_code

    @property
    def retry_after_s(self) -> int | None:
        """When to send it again; None when sending it again cannot help."""
        return _ANSWERS[self.reason].retry_after_s


class FieldError(ValueError):
    """A value that OTLP does not allow, and the path to it."""

    def __init__(self, problem: str) -> None:
        """`problem` completes the sentence that begins with the path."""
        super().__init__(problem)
        self._problem = problem
        self._steps: list[str] = []

    def under(self, step: str) -> "FieldError":
        """Itself, one field further from the root."""
        self._steps += [step] if step else []
        return self

    def __str__(self) -> str:
        path = ".".join(reversed(self._steps)).replace(".[", "[")
        return f"{path}: {self._problem}" if path else self._problem
