"""The body of Bedrock's InvokeModel, read by the program -> a finished call.

The program keeps botocore's `StreamingBody`; the raw stream inside it is one that copies what is
read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
import wrapt

from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.invocation import Call
from starpo_trace.capture.patches.bedrock_invoke import Family
from starpo_trace.capture.patches.streams import StreamRecording
from starpo_trace.guard import Guard


def record_streaming_body(result: Mapping[str, Any], call: Call, family: Family) -> None:
    """Record the body of an answer as the program reads it."""
    body = result["body"]
    raw = getattr(body, "_raw_stream", None)
    if raw is None:
        call.finish(LLMResponse(is_unread=True))
        return
    headers = result["ResponseMetadata"].get("HTTPHeaders") or {}
    body._raw_stream = _RecordedRawStream(raw, _RawRecording(call, _Body(family, headers)))


class _Body:
    """Pieces of a body -> response."""

    def __init__(self, family: Family, headers: Mapping[str, str]) -> None:
        self._family = family
        self._headers = headers
        self._pieces: list[bytes] = []
        length = headers.get("content-length", "")
        self._num_missing = int(length) if length.isdigit() else None

    def add(self, chunk: Any) -> None:
        """Take the next bytes in."""
        self._pieces.append(bytes(chunk))
        if self._num_missing is not None:
            self._num_missing -= len(chunk)

    def is_whole(self) -> bool:
        """Whether everything that the server announced has been read."""
        return self._num_missing is not None and self._num_missing <= 0

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        try:
            answer = orjson.loads(b"".join(self._pieces))
        except orjson.JSONDecodeError:  # nothing, or cut off
            return LLMResponse(is_unread=True)
        return self._family.read_response(answer, self._headers)


class _RawRecording(StreamRecording):
    """A body being read by the program."""

    def __init__(self, call: Call, body: _Body) -> None:
        super().__init__(call, body)
        self._body = body

    def read(self, read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Read as the program asked, and note what came and whether more can."""
        self.is_reading = True
        try:
            chunk = read(*args, **kwargs)
        except BaseException as error:
            self.note_failure(error)
            raise
        finally:
            self.is_reading = False
        with Guard("recording a body"):
            amount = args[0] if args else kwargs.get("amt")
            piece = chunk
            if isinstance(chunk, int):  # readinto
                piece = memoryview(args[0])[:chunk]
                amount = len(args[0])
            elif isinstance(chunk, list):  # readlines
                piece, amount = b"".join(chunk), None
            if len(piece):
                self.note_chunk(piece)
            is_end = amount is None or amount < 0 or (not len(piece) and amount > 0)
            if is_end or self._body.is_whole():
                self.finish("exhausted")
        return chunk


class _RecordedRawStream(wrapt.ObjectProxy):
    """Stands in for the raw stream inside a `StreamingBody`."""

    def __init__(self, raw: Any, recording: _RawRecording) -> None:
        super().__init__(raw)
        self._self_recording = recording

    def read(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_recording.read(self.__wrapped__.read, *args, **kwargs)

    def readinto(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_recording.read(self.__wrapped__.readinto, *args, **kwargs)

    def readlines(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_recording.read(self.__wrapped__.readlines, *args, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        with Guard("noting that a body was closed"):
            self._self_recording.note_close()
        return self.__wrapped__.close(*args, **kwargs)
