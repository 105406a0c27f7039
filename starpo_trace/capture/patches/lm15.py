"""lm15, DSPy's own client of models -> recorded calls, read from the bytes of the wire.

It speaks the protocols of OpenAI and of Anthropic without their SDKs. Its transports are the one
place that all of it passes; each attempt of a call that is tried again is a call of its own.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
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
    recorded = RecordedAsyncIterator if is_async else RecordedIterator
    recording = recorded(response._chunks, call, chunks)
    response._chunks = recording
    release = _release_async if is_async else _release
    response._release = release(response._release, recording)
    return response


def _release(release: Callable[[bool], Any], recording: StreamRecording) -> Callable[[bool], Any]:
    def release_recorded(is_consumed: bool) -> Any:
        with Guard("noting that a response was closed"):
            recording.note_close()
        return release(is_consumed)

    return release_recorded


def _release_async(
    release: Callable[[bool], Any], recording: StreamRecording
) -> Callable[[bool], Any]:
    async def release_recorded(is_consumed: bool) -> Any:
        with Guard("noting that a response was closed"):
            recording.note_close()
        return await release(is_consumed)

    return release_recorded
