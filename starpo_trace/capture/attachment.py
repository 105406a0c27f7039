"""Making an OpenTelemetry Context current, and undoing that only where it is possible."""

from contextvars import ContextVar, Token

from opentelemetry import context as otel_context
from opentelemetry.context import Context

_attachment: ContextVar[object] = ContextVar("starpo_attachment", default=None)


class Attachment:
    """A Context made current, and put back only where that is possible.

    A generator or task may leave its block in another Context than it entered; OpenTelemetry's
    own detach then logs an error, so it is skipped.
    """

    __slots__ = ("_mark", "_token")

    def __init__(self, context: Context) -> None:
        self._mark: Token[object] = _attachment.set(self)
        self._token = otel_context.attach(context)

    def detach(self) -> None:
        """Make the Context before current again."""
        try:
            _attachment.reset(self._mark)
        except (ValueError, RuntimeError):  # we are in another Context, or were here before
            return
        otel_context.detach(self._token)
