"""A response that the program reads itself -> a finished call.

`with_raw_response` and `with_streaming_response` hand out the HTTP response. A body that was read
already is read once more, from memory. One that was not is copied while the program reads it:
httpx reads, decodes and iterates through `iter_bytes` / `aiter_bytes` alone.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson

from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.invocation import Call
from starpo_trace.capture.patches.streams import ChunkAccumulator, StreamRecording
from starpo_trace.guard import Guard


class BodyChunks:
    """Bytes of a body -> response: one JSON value, or server-sent events."""

    def __init__(
        self,
        read_response: Callable[[Any], LLMResponse],
        make_accumulator: Callable[[], ChunkAccumulator] | None,
    ) -> None:
        self._read_response = read_response
        self._make_accumulator = make_accumulator
        self._pieces: list[bytes] = []

    def add(self, chunk: Any) -> None:
        """Take the next bytes in."""
        self._pieces.append(chunk)

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        body = b"".join(self._pieces)
        if not body:
            return LLMResponse(is_unread=True)
        if self._make_accumulator is None or body.lstrip()[:1] == b"{":
            try:
                return self._read_response(orjson.loads(body))
            except orjson.JSONDecodeError:  # cut off
                return LLMResponse(is_unread=True)
        accumulator = self._make_accumulator()
        for event in read_events(body):
            accumulator.add(event)
        return accumulator.build_response()


def read_events(body: bytes) -> Iterator[Any]:
    """Server-sent events -> the JSON value of each; an unfinished or foreign one is left out."""
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = b"\n".join(
            line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")
        )
        if data and data != b"[DONE]":
            try:
                yield orjson.loads(data)
            except orjson.JSONDecodeError:
                continue


def record_body(
    result: Any,
    call: Call,
    read_response: Callable[[Any], LLMResponse],
    make_accumulator: Callable[[], ChunkAccumulator] | None,
) -> bool:
    """Record the body of a raw response; False when it is of a kind we do not know."""
    http_response = getattr(result, "http_response", result)
    chunks = BodyChunks(read_response, make_accumulator if call.is_stream else None)
    if getattr(http_response, "is_stream_consumed", False):
        chunks.add(http_response.content)
        call.finish(chunks.build_response())
        return True
    recording = BodyRecording(call, chunks)
    if _is_async(http_response):
        _hook_async_reading(http_response, recording)
    elif hasattr(http_response, "iter_bytes"):
        _hook_reading(http_response, recording)
    else:
        return False
    return True


def _is_async(http_response: Any) -> bool:
    return hasattr(getattr(http_response, "stream", None), "__aiter__") and hasattr(
        http_response, "aiter_bytes"
    )


class BodyRecording(StreamRecording):
    """A body being read by the program."""


def _hook_reading(http_response: Any, recording: BodyRecording) -> None:
    iter_bytes, close = http_response.iter_bytes, http_response.close

    def iter_bytes_recorded(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        recording.is_reading = True
        try:
            for piece in iter_bytes(*args, **kwargs):
                recording.note_chunk(piece)
                recording.is_reading = False
                yield piece
                recording.is_reading = True
        except GeneratorExit:
            recording.is_reading = False
            raise
        except BaseException as error:
            recording.note_failure(error)
            raise
        recording.finish("exhausted")

    def close_recorded(*args: Any, **kwargs: Any) -> Any:
        with Guard("noting that a response was closed"):
            recording.note_close()
        return close(*args, **kwargs)

    http_response.iter_bytes = iter_bytes_recorded
    http_response.close = close_recorded


def _hook_async_reading(http_response: Any, recording: BodyRecording) -> None:
    aiter_bytes, aclose = http_response.aiter_bytes, http_response.aclose

    async def aiter_bytes_recorded(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        recording.is_reading = True
        try:
            async for piece in aiter_bytes(*args, **kwargs):
                recording.note_chunk(piece)
                recording.is_reading = False
                yield piece
                recording.is_reading = True
        except GeneratorExit:
            recording.is_reading = False
            raise
        except BaseException as error:
            recording.note_failure(error)
            raise
        recording.finish("exhausted")

    async def aclose_recorded(*args: Any, **kwargs: Any) -> Any:
        with Guard("noting that a response was closed"):
            recording.note_close()
        return await aclose(*args, **kwargs)

    http_response.aiter_bytes = aiter_bytes_recorded
    http_response.aclose = aclose_recorded
