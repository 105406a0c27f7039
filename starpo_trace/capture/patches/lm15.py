"""lm15, DSPy's own client of models -> recorded calls, read from the bytes of the wire.

It speaks the protocols of OpenAI and of Anthropic without their SDKs. Its transports are the one
place that all of it passes; each attempt of a call that is tried again is a call of its own.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from starpo_trace.capture.exchange import LLMRequest, LLMResponse, StreamOutcome
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.anthropic_events import MessageEvents
from starpo_trace.capture.patches.anthropic_messages import (
    read_messages_request,
    read_messages_response,
)
from starpo_trace.capture.patches.base import PatchSet, make_async_recorder, make_recorder
from starpo_trace.capture.patches.bodies import BodyChunks
from starpo_trace.capture.patches.openai_endpoints import find_endpoint
from starpo_trace.capture.patches.stainless import Endpoint, name_provider
from starpo_trace.capture.patches.streams import (
    ChunkAccumulator,
    RecordedAsyncIterator,
    RecordedIterator,
    StreamRecording,
)
from starpo_trace.guard import Guard

TESTED: Final = {"dspy": ">=3.4,<3.5"}

_MESSAGES: Final = Endpoint(
    read_request=read_messages_request,
    read_response=read_messages_response,
    make_accumulator=MessageEvents,
)
_FIRST_ERROR: Final = 400
"""Status from which on an answer says what went wrong."""


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch one of its modules `transports._sync` and `transports._async`."""
    if module.__name__.endswith("_sync"):
        patches.wrap(module.StdlibTransport, "stream", make_recorder(_begin, _end))
    else:
        recorder = make_async_recorder(_begin, _end)
        patches.wrap(module.StdlibAsyncTransport, "_do_stream", recorder)


class _ErrorBody:
    """Bytes of an answer that is an error."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._pieces: list[bytes] = []

    def add(self, chunk: Any) -> None:
        """Take the next bytes in."""
        self._pieces.append(chunk)

    def build_response(self) -> LLMResponse:
        """What the server says about it."""
        text = b"".join(self._pieces).decode(errors="replace")
        try:
            told = orjson.loads(text)["error"]
            text = told if isinstance(told, str) else told["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass
        return LLMResponse(error_type=str(self._status), error_message=text)


class _BodyRecording(StreamRecording):
    """A body that is read: it is a stream of chunks only where one was asked for and came."""

    is_stream = False

    def finish(self, outcome: StreamOutcome | None, error: BaseException | None = None) -> None:
        """Finish the call."""
        if not self.is_stream and error is None and outcome == "exhausted":
            outcome = "error" if self.call.is_stream else None
        super().finish(outcome, error)


class _Body(_BodyRecording, RecordedIterator):
    """Stands in for the iterator of a body."""


class _AsyncBody(_BodyRecording, RecordedAsyncIterator):
    """Stands in for the asynchronous iterator of a body."""


def _begin(
    _transport: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Call, Endpoint] | None:
    sent = args[0] if args else kwargs["request"]
    url = urlsplit(sent.url)
    is_messages = sent.method == "POST" and url.path.endswith("/v1/messages")
    endpoint = _MESSAGES if is_messages else find_endpoint(sent.method.lower(), url.path)
    if endpoint is None or not sent.body:
        return None
    provider = "anthropic" if is_messages else name_provider("", url.hostname, "openai")
    call = begin_call(_read_request, endpoint, provider, url, sent.body)
    return None if call is None else (call, endpoint)


def _read_request(endpoint: Endpoint, provider: str, url: Any, sent: bytes) -> LLMRequest:
    body = orjson.loads(sent)
    server = {
        "provider": provider,
        "address": url.hostname,
        "port": url.port,
        "is_stream": bool(body.get("stream")),
    }
    return endpoint.read_request(server, body)


def _end(call: Call, endpoint: Endpoint, response: Any) -> Any:
    """Copy the body while it is read."""
    chunks: ChunkAccumulator = BodyChunks(
        endpoint.read_response, endpoint.make_accumulator if call.is_stream else None
    )
    if response.status >= _FIRST_ERROR:
        chunks = _ErrorBody(response.status)
    is_async = hasattr(response._chunks, "__anext__")
    recording = (_AsyncBody if is_async else _Body)(response._chunks, call, chunks)
    recording.is_stream = call.is_stream and response.status < _FIRST_ERROR
    response._chunks = recording
    watch = _watch_release_async if is_async else _watch_release
    response._release = watch(response._release, recording)
    return response


def _watch_release(release: Callable[..., Any], recording: StreamRecording) -> Callable[..., Any]:
    def release_recorded(*args: Any, **kwargs: Any) -> Any:
        with Guard("noting that a response was closed"):
            recording.note_close()
        return release(*args, **kwargs)

    return release_recorded


def _watch_release_async(
    release: Callable[..., Any], recording: StreamRecording
) -> Callable[..., Any]:
    async def release_recorded(*args: Any, **kwargs: Any) -> Any:
        with Guard("noting that a response was closed"):
            recording.note_close()
        return await release(*args, **kwargs)

    return release_recorded
