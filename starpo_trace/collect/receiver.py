"""Request body -> stored records: admission, decoding off the event loop, commit, counts."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from starpo_trace.collect.commit import CommitLog
from starpo_trace.collect.decode import Decoded, decode_body
from starpo_trace.collect.limits import Limits
from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.collect.signals import LOGS, Signal

_NUM_DECODERS: Final = 2  # decoding holds the interpreter; more threads would only hold memory


class Admission:
    """One request's share of what the receiver works on at once."""

    def __init__(self, receiver: "Receiver") -> None:
        self._receiver = receiver
        self.num_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """Declare how many bytes the request holds now.

        Raises:
            RefusedError: all requests together would hold too many.
        """
        receiver = self._receiver
        num_held = receiver.num_held_bytes - self.num_bytes + num_bytes
        if num_bytes > self.num_bytes and num_held > receiver.limits.max_held_bytes:
            raise RefusedError(Reason.BUSY, "too many bytes in flight; send it again shortly")
        receiver.num_held_bytes = num_held
        self.num_bytes = num_bytes


class Receiver:
    """What both servers share. Its methods are called from the event loop's thread."""

    def __init__(self, log: CommitLog, limits: Limits) -> None:
        """Write into `log`, which stays the caller's to close."""
        self.limits = limits
        self.is_closing = False
        """Whether new requests are sent away, to another receiver or to later."""
        self.num_held_bytes = 0
        self.num_active = 0
        self._log = log
        self._decoders = ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="starpo-decode")
        self._num_answered = 0
        self._num_partial = 0
        self._num_spans = {"acknowledged": 0, "rejected": 0}
        self._num_log_records = {"acknowledged": 0, "rejected": 0}
        self._refused: Counter[str] = Counter()

    @contextmanager
    def admit(self) -> Iterator[Admission]:
        """Let one request in.

        Raises:
            RefusedError: too many are being worked on, or the receiver is shutting down.
        """
        if self.is_closing:
            raise RefusedError(Reason.UNAVAILABLE, "the receiver is shutting down")
        if self.num_active >= self.limits.max_requests:
            raise RefusedError(Reason.BUSY, "too many requests at once; send it again shortly")
        admission = Admission(self)
        self.num_active += 1
        try:
            yield admission
        finally:
            self.num_active -= 1
            self.num_held_bytes -= admission.num_bytes

    async def store(
        self,
        admission: Admission,
        body: bytes,
        signal: Signal,
        *,
        encoding: str,
        content_type: str,
    ) -> Decoded:
        """Body as sent -> what was stored of it; on return it is on disk.

        Raises:
            RefusedError: nothing of it is acknowledged.
        """
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(
            self._decoders, decode_body, body, encoding, content_type, self.limits, signal
        )
        if decoded.num_records:
            admission.hold(len(body) + len(decoded.payload))
            await asyncio.wrap_future(self._log.submit(decoded.payload, decoded.num_records))
        self._num_answered += 1
        self._num_partial += decoded.num_rejected > 0
        counts = self._num_log_records if signal is LOGS else self._num_spans
        counts["acknowledged"] += decoded.num_records
        counts["rejected"] += decoded.num_rejected
        return decoded

    def count_refused(self, reason: Reason) -> None:
        """Count a request that was not taken."""
        self._refused[reason.value] += 1

    def close(self) -> None:
        """Let the decoders go; requests must be over."""
        self.is_closing = True
        self._decoders.shutdown()

    def read_stats(self) -> dict[str, Any]:
        """Counts since the start; accepted = acknowledged + rejected."""
        return {
            "spans": {"accepted": sum(self._num_spans.values()), **self._num_spans},
            "log_records": {
                "accepted": sum(self._num_log_records.values()),
                **self._num_log_records,
            },
            "requests": {
                "answered": self._num_answered,
                "partial": self._num_partial,
                "active": self.num_active,
                "refused": dict(sorted(self._refused.items())),
            },
            "store": {
                "records": self._log.num_stored,
                "commits": self._log.num_commits,
                "trouble": self._log.trouble,
            },
        }
