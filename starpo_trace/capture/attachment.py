"""Making an OpenTelemetry Context current, and undoing that only where it is possible."""

from contextvars import ContextVar, Token
from typing import Generic, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import Context

_T = TypeVar("_T")
_attachment: ContextVar[object] = ContextVar("starpo_attachment", default=None)
_innermost: "ContextVar[Entry | None]" = ContextVar("starpo_entry", default=None)


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


class Entry:
    """A Context made current by a block of the user's, which may be left in any order.

    Two generators that each hold a block open over a `yield` leave them as they are driven. Who
    leaves while another one's Context is current changes nothing; the last one out puts back what
    was current before all of them.
    """

    __slots__ = ("_before", "_context", "_is_left", "_mark", "_outer", "_token")

    def __init__(self, context: Context) -> None:
        self._outer = _find_open(_innermost.get())
        self._before = otel_context.get_current()
        self._context = context
        self._is_left = False
        self._mark = _innermost.set(self)
        self._token = otel_context.attach(context)

    def leave(self) -> bool:
        """Make the Context before current again; whether that was possible and in order."""
        self._is_left = True
        innermost = _innermost.get()
        if innermost is not self and _find_open(innermost, self) is not self:
            return False
        last = self
        while last._outer is not None and last._outer._is_left:
            if last._before is not last._outer._context:  # the user's own was attached between
                break
            last = last._outer
        if last is innermost:
            try:
                _innermost.reset(self._mark)
            except (ValueError, RuntimeError):  # copied from the Context that it was entered in
                self._put_back()
                return False
            otel_context.detach(self._token)
        else:
            last._put_back()
        return True

    def _put_back(self) -> None:
        _innermost.set(_find_open(self._outer))
        otel_context.attach(self._before)


def _find_open(entry: Entry | None, wanted: Entry | None = None) -> Entry | None:
    """Innermost entry from this one outwards that was not left, or is the wanted one."""
    while entry is not None and entry._is_left and entry is not wanted:
        entry = entry._outer
    return entry


class OpenEntries(Generic[_T]):
    """What one scope object has open: it may be entered again, also by others at the same time."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        # Each change is one operation of a dict's, so threads need no lock.
        self._values: dict[object, tuple[Entry | None, _T]] = {}

    def add(self, entry: Entry | None, value: _T) -> None:
        """Remember what was opened with an entry, or without any."""
        self._values[entry if entry is not None else object()] = (entry, value)

    def take(self) -> tuple[Entry | None, _T] | None:
        """What is closed now: the innermost of this Context, else the latest."""
        entry = _innermost.get()
        while entry is not None:
            found = self._values.pop(entry, None)
            if found is not None:
                return found
            entry = entry._outer
        try:
            return self._values.popitem()[1]
        except KeyError:
            return None
