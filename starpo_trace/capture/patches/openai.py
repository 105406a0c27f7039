"""OpenAI SDK calls -> recorded model calls.

The one seam that every way into chat completions passes (`create`, `parse`, `stream`, raw
responses, `client.post`) is the client's `request` method. Automatic retries happen inside it and
are one call.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import orjson
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.invocation import LLMCall, LLMResponse, begin_call, is_call_open
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.openai_wire import (
    ChatChunks,
    read_chat_request,
    read_chat_response,
)
from starpo_trace.capture.patches.streams import record_stream
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.guard import Guard

_CHAT_PATH = "/chat/completions"


def apply(patches: PatchSet, base_client: ModuleType) -> None:
    """Patch the module `openai._base_client`."""
    patches.wrap(base_client.SyncAPIClient, "request", record_request)
    patches.wrap(base_client.AsyncAPIClient, "request", record_async_request)


def record_request(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Stand in for `SyncAPIClient.request`."""
    call = _begin_chat(instance, args, kwargs)
    if call is None:
        return wrapped(*args, **kwargs)
    attachment = Attachment(call.context)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        call.fail(error)
        raise
    finally:
        attachment.detach()
    _record_result(call, result)
    return result


async def record_async_request(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Stand in for `AsyncAPIClient.request`."""
    call = _begin_chat(instance, args, kwargs)
    if call is None:
        return await wrapped(*args, **kwargs)
    attachment = Attachment(call.context)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        call.fail(error)
        raise
    finally:
        attachment.detach()
    _record_result(call, result)
    return result


def _begin_chat(client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LLMCall | None:
    """Start the span of a request, if it is a chat completion that is to be recorded."""
    with Guard("beginning a model call"):
        runtime = get_runtime()
        if runtime is None:
            return None
        options = kwargs["options"] if "options" in kwargs else args[1]
        if not options.url.endswith(_CHAT_PATH) or options.method.lower() != "post":
            return None
        if not is_instrumentation_enabled() or is_call_open():
            return None
        body = {**(options.json_data or {}), **(options.extra_json or {})}
        is_stream = bool(kwargs.get("stream"))
        return begin_call(runtime, read_chat_request(client, body, is_stream=is_stream))
    return None


def _record_result(call: LLMCall, result: Any) -> None:
    """Finish the call with an answer, or let its stream finish it."""
    response = LLMResponse(is_unread=True)
    with Guard("reading a model's answer"):
        if call.is_stream and record_stream(result, call, ChatChunks()):
            return
        if hasattr(result, "choices") or isinstance(result, Mapping):
            response = read_chat_response(result)
        elif not call.is_stream and (content := _read_raw_content(result)) is not None:
            response = read_chat_response(orjson.loads(content))
    call.finish(response)


def _read_raw_content(result: Any) -> bytes | None:
    """Body of a raw response that the SDK has read already; None when it has not."""
    http_response = getattr(result, "http_response", result)
    if not getattr(http_response, "is_stream_consumed", False):
        return None  # reading it here would take it from the program
    return http_response.content
