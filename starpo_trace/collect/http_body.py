"""Pieces of an HTTP body as they arrive -> the body, bounded in size and time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starpo_trace.collect.limits import Limits
from starpo_trace.collect.receiver import Admission
from starpo_trace.collect.refusals import Reason, RefusedError

Receive = Callable[[], Awaitable[dict[str, Any]]]

_MAX_DRAIN_BYTES: Final = 1 << 20
_DRAIN_S: Final = 2.0


class Body:
    """Body of one request, read within limits."""

    def __init__(self, receive: Receive, limits: Limits, *, is_asked_for: bool) -> None:
        """`is_asked_for` is false when the client waits for `100 Continue` first."""
        self._receive = receive
        self._limits = limits
        self._is_asked_for = is_asked_for
        self.is_over = False
        """Whether nothing more of it can come."""

    async def read(self, admission: Admission, content_length: str) -> bytes:
        """All of it.

        Raises:
            RefusedError: it is too large, too slow, or the client left.
        """
        limit = self._limits.max_body_bytes
        if content_length.isdigit() and int(content_length[:20]) > limit:
            raise _too_large(limit)
        self._is_asked_for = True
        pieces: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while not self.is_over:
                    piece = await self._read_piece()
                    num_bytes += len(piece)
                    if num_bytes > limit:
                        raise _too_large(limit)
                    admission.hold(num_bytes)
                    pieces.append(piece)
        except TimeoutError:
            raise RefusedError(
                Reason.TIMEOUT, f"no whole body within {self._limits.body_timeout_s:g} s"
            ) from None
        return b"".join(pieces)

    async def drain(self) -> None:
        """Read on for a little: closing at once could destroy the answer on its way."""
        if not self._is_asked_for:
            return
        num_bytes = 0
        with contextlib.suppress(TimeoutError, RefusedError):
            async with asyncio.timeout(_DRAIN_S):
                while not self.is_over and num_bytes < _MAX_DRAIN_BYTES:
                    num_bytes += len(await self._read_piece())

    async def _read_piece(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_over = True
            raise RefusedError(Reason.DISCONNECTED, "the client left")
        self.is_over = not message.get("more_body", False)
        return message.get("body", b"")


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        Reason.TOO_LARGE, f"the body has more than {limit:,} bytes; send fewer spans in a request"
    )
