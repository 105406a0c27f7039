"""AWS SDK (botocore) -> recorded calls of Bedrock's models.

Every AWS call passes the seam, so anything but a model call leaves it after one look-up.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.base import PatchSet, make_recorder
from starpo_trace.capture.patches.bedrock_bodies import record_streaming_body
from starpo_trace.capture.patches.bedrock_converse import (
    read_converse_request,
    read_converse_response,
)
from starpo_trace.capture.patches.bedrock_events import (
    ConverseEvents,
    InvokeEvents,
    RecordedEvents,
    WireEvents,
)
from starpo_trace.capture.patches.bedrock_invoke import Family, find_family
from starpo_trace.guard import Guard

TESTED: Final = {"botocore": ">=1.43,<1.45"}

_OPERATIONS: Final = frozenset(
    {"Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream"}
)


def apply(patches: PatchSet, client: ModuleType) -> None:
    """Patch the module `botocore.client`."""
    from botocore.eventstream import EventStream

    record = make_recorder(_begin, _end)

    def record_model_call(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if args and args[0] in _OPERATIONS:
            return record(wrapped, instance, args, kwargs)
        return wrapped(*args, **kwargs)

    patches.wrap(client.BaseClient, "_make_api_call", record_model_call)
    patches.wrap(EventStream, "_parse_event", _parse_event)
    patches.wrap(EventStream, "close", _close)


def _begin(
    client: Any, args: tuple[Any, ...], _kwargs: Mapping[str, Any]
) -> tuple[Call, Family | None] | None:
    operation, params = args
    family = None
    if operation.startswith("InvokeModel"):
        family = find_family(params)
    call = begin_call(_read_request, client, operation, params, family)
    return None if call is None else (call, family)


def _read_request(
    client: Any, operation: str, params: Mapping[str, Any], family: Family | None
) -> LLMRequest:
    address, port = _read_endpoint(str(client.meta.endpoint_url))
    server = {
        "provider": "aws.bedrock",
        "address": address,
        "port": port,
        "is_stream": operation.endswith("Stream"),
    }
    if family is None:
        return read_converse_request(server, params)
    return family.read_request(server, params)


@lru_cache(maxsize=64)
def _read_endpoint(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    return parts.hostname, parts.port


def _end(call: Call, family: Family | None, result: Any) -> Any:
    if family is None:
        if call.is_stream:
            request_id = result["ResponseMetadata"].get("RequestId")
            _record_events(result["stream"], call, WireEvents(ConverseEvents(request_id)))
        else:
            call.finish(read_converse_response(result))
    elif call.is_stream:
        _record_events(result["body"], call, InvokeEvents(family.make_accumulator()))
    else:
        record_streaming_body(result, call, family)
    return result


def _record_events(stream: Any, call: Call, accumulator: WireEvents) -> None:
    if not hasattr(stream, "_event_generator"):
        call.finish(LLMResponse(is_unread=True))
        return
    stream._event_generator = RecordedEvents(stream._event_generator, call, accumulator)


def _parse_event(
    wrapped: Callable[..., Any], stream: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Parse an event; an error that the server sent as one is raised here."""
    try:
        return wrapped(*args, **kwargs)
    except BaseException as error:
        events = getattr(stream, "_event_generator", None)
        if isinstance(events, RecordedEvents):
            with Guard("recording an error in a stream"):
                events.note_failure(error)
        raise


def _close(
    wrapped: Callable[..., Any], stream: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    events = getattr(stream, "_event_generator", None)
    if isinstance(events, RecordedEvents):
        with Guard("noting that a stream was closed"):
            events.note_close()
    return wrapped(*args, **kwargs)
