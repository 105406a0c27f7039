"""What a program asked a model, and what was answered -> span attributes.

`LLMRequest` and `LLMResponse` are no provider's dialect: each provider's patch translates its wire
format into them, and from here on there is one way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.messages import Message, dump_json

if TYPE_CHECKING:
    from starpo_trace.capture.history import Prompt
    from starpo_trace.privacy.redactor import Redactor

StreamOutcome = Literal["exhausted", "cut", "closed", "dropped", "cancelled", "error"]

MASKED_TOKEN_ID: Final = -1
"""Stands for the id of a token whose text was redacted, so that the others keep their places."""
_TOKEN_LISTS: Final = frozenset({"logprobsResult"})
"""Fields of `extra` in which a secret cannot be found, being in pieces."""


@dataclass(slots=True, kw_only=True)  # not frozen: made on every call, and thrice as dear frozen
class LLMRequest:
    """What a program asked a model."""

    provider: str
    """`gen_ai.provider.name`."""
    model: str
    """Model name as sent."""
    messages: Sequence[Message]
    """The whole prompt, separate system instructions first as a message of role `system`."""
    operation: str = "chat"
    """`gen_ai.operation.name`."""
    tool_definitions: Any = None
    """Tool definitions as sent; None when no tools were offered."""
    parameters: Mapping[str, AttributeValue] = field(default_factory=dict)
    """Sampling parameters under their semantic-convention keys."""
    is_stream: bool = False
    """Whether the answer was asked for as a stream."""
    is_retrieval: bool = False
    """Whether it is a step that looks something up (embeddings, search), no model's turn."""
    query: Any = None
    """What a retrieval looks up."""
    is_redacted: bool = False
    """Whether anything in it was masked."""
    previous_response_id: str | None = None
    """The server's id of the answer that `messages` continue, when it keeps the history."""
    conversation_id: str | None = None
    """The server's id of the conversation that `messages` continue, when it keeps the history."""
    is_rebased: bool = False
    """Whether that history begins otherwise now (other instructions) than in earlier spans."""
    is_routed: bool = False
    """Whether `provider` is what a router chose, which an SDK below knows less well."""
    is_passed_on: bool = False
    """Whether an SDK below makes the same call, whose record joins this one."""
    is_partial: bool = False
    """Whether another process makes the call and tells only a part of what it sends and gets."""
    started_ns: int | None = None
    """When it was sent, where that is over; Unix time."""
    address: str | None = None
    """Host of the server."""
    port: int | None = None
    """Port of the server."""

    @property
    def base_id(self) -> str | None:
        """What the server's own history, which `messages` continue, is known by."""
        return self.previous_response_id or self.conversation_id


@dataclass(slots=True, kw_only=True)  # not frozen, as above
class LLMResponse:
    """What a model answered, possibly only in part."""

    id: str | None = None
    """The server's id of the response."""
    model: str | None = None
    """Model name as received."""
    messages: Sequence[Message] = ()
    """One per choice."""
    finish_reasons: Sequence[str] = ()
    """One per choice that finished."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """Token counts under their semantic-convention keys; absent when the server did not say."""
    prompt_token_ids: list[int] | None = None
    """Ids of the whole prompt, as the server's model read them."""
    response_token_ids: list[int] | None = None
    """Ids sampled for choice 0."""
    response_logprobs: list[float | None] | None = None
    """Log-probability of each sampled token of choice 0; None for one that was redacted."""
    response_tokens: list[str] | None = None
    """Text of each sampled token, where the server gave no ids."""
    documents: Any = None
    """What a retrieval found."""
    num_dimensions: int | None = None
    """Length of each embedding."""
    error_type: str | None = None
    """The server's code of a failure that it reports in an answer."""
    error_message: str | None = None
    """What the server says about it."""
    is_unread: bool = False
    """Whether the body went to the program unread."""
    ended_ns: int | None = None
    """When its last piece came, where that is over; Unix time."""
    is_redacted: bool = False
    """Whether anything in it was masked."""


def describe_request(request: LLMRequest, *, has_content: bool) -> dict[str, AttributeValue]:
    """Request -> the attributes that say what was asked, without its messages."""
    attributes: dict[str, AttributeValue] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: request.operation,
        semconv.PROVIDER_NAME: request.provider,
        semconv.REQUEST_MODEL: request.model,
    }
    if request.parameters:
        attributes.update(request.parameters)
    if request.is_stream:
        attributes[semconv.REQUEST_STREAM] = True
    if request.address is not None:
        attributes[semconv.SERVER_ADDRESS] = request.address
    if request.port is not None:
        attributes[semconv.SERVER_PORT] = request.port
    if request.previous_response_id is not None:
        attributes[semconv.PREVIOUS_RESPONSE_ID] = request.previous_response_id
    if request.is_retrieval:
        _describe_retrieval(request, attributes, has_content=has_content)
    if has_content and request.tool_definitions:
        attributes[semconv.TOOL_DEFINITIONS] = dump_json(request.tool_definitions)
    return attributes


def _describe_retrieval(
    request: LLMRequest, attributes: dict[str, AttributeValue], *, has_content: bool
) -> None:
    attributes[semconv.RECORD] = "step"
    attributes[semconv.STEP_KIND] = "retriever"
    if not request.model:  # a search
        del attributes[semconv.REQUEST_MODEL]
    if has_content and request.query is not None:
        attributes[semconv.TOOL_CALL_ARGUMENTS] = dump_json(request.query)


def describe_response(response: LLMResponse, *, has_content: bool) -> dict[str, AttributeValue]:
    """Response -> the attributes that say what was answered."""
    attributes: dict[str, AttributeValue] = dict(response.usage)
    if response.id is not None:
        attributes[semconv.RESPONSE_ID] = response.id
    if response.model is not None:
        attributes[semconv.RESPONSE_MODEL] = response.model
    if response.finish_reasons:
        attributes[semconv.RESPONSE_FINISH_REASONS] = tuple(response.finish_reasons)
    if response.num_dimensions is not None:
        attributes[semconv.EMBEDDINGS_DIMENSION_COUNT] = response.num_dimensions
    if not has_content:
        return attributes
    if response.documents is not None:
        attributes[semconv.TOOL_CALL_RESULT] = dump_json(response.documents)
    if response.messages:
        attributes[semconv.OUTPUT_MESSAGES] = dump_json(response.messages)
    _describe_tokens(response, attributes)
    return attributes


def _describe_tokens(response: LLMResponse, attributes: dict[str, AttributeValue]) -> None:
    if response.response_token_ids is not None:
        attributes[semconv.RESPONSE_TOKEN_IDS] = dump_json(response.response_token_ids)
    elif response.response_tokens is not None:
        attributes[semconv.RESPONSE_TOKENS] = dump_json(response.response_tokens)
    if response.response_logprobs is not None:
        attributes[semconv.RESPONSE_LOGPROBS] = dump_json(response.response_logprobs)


def complete_response(told: LLMResponse, wire: LLMResponse) -> LLMResponse:
    """What a caller was told and what the SDK below received -> both, the wire's word first."""
    fields = {
        name: value
        for name in (
            "id",
            "model",
            "messages",
            "finish_reasons",
            "prompt_token_ids",
            "response_token_ids",
            "response_logprobs",
            "response_tokens",
            "error_type",
            "error_message",
        )
        if (value := getattr(wire, name))
    }
    return replace(told, **fields, usage={**told.usage, **wire.usage}, is_unread=False)


def decide_step_kind(request: LLMRequest, response: LLMResponse) -> str:
    """`finalizer` for an answer given although tools were offered, else `planner`."""
    for message in response.messages:
        for part in message["parts"]:
            if part["type"] == "tool_call":
                return "planner"
    return "finalizer" if request.tool_definitions else "planner"


def list_reasons(
    request: LLMRequest,
    response: LLMResponse,
    error: BaseException | None,
    outcome: StreamOutcome | None,
    prompt: "Prompt | None",
) -> set[str]:
    """Why a call is worth less to training than it might be."""
    reasons: set[str] = set()
    if error is not None or response.error_type is not None:
        reasons.add("call_error")
        if outcome in {None, "error"} and not response.messages:
            return reasons  # nothing was sampled, so nothing is missing
    if outcome not in {None, "exhausted"}:
        reasons.add("stream_incomplete")
    if response.is_unread:
        reasons.add("unread_response")
    if request.is_partial:
        reasons.add("partial_content")
    if request.is_redacted or response.is_redacted:
        reasons.add("redacted")
    if request.base_id is not None and (prompt is None or not prompt.has_base):
        reasons.add("history_on_server")
    if response.prompt_token_ids is None or response.response_token_ids is None:
        reasons.add("token_ids_missing")
    if response.response_logprobs is None:
        reasons.add("logprob_missing")
    return reasons


def redact_request(request: LLMRequest, redactor: "Redactor") -> LLMRequest:
    """Request -> the request that may be recorded; the same object when nothing is masked."""
    messages = [redactor.redact_message(message) for message in request.messages]
    tools, query = request.tool_definitions, request.query
    if all(new is old for new, old in zip(messages, request.messages, strict=True)):
        messages = request.messages
    redact = redactor.redact_text
    recorded = {
        "model": redact(request.model),
        "previous_response_id": request.previous_response_id
        and redact(request.previous_response_id),
        "conversation_id": request.conversation_id and redact(request.conversation_id),
        "address": request.address and redact(request.address),
        "messages": messages,
        "tool_definitions": tools and redactor.redact_value(tools),
        "parameters": request.parameters and redactor.redact_value(request.parameters),
        "query": query and redactor.redact_value(query),
    }
    if all(value is getattr(request, name) for name, value in recorded.items()):
        return request
    return replace(request, **recorded, is_redacted=True)


def redact_response(
    response: LLMResponse, redactor: "Redactor", *, is_prompt_redacted: bool
) -> LLMResponse:
    """Response -> the response that may be recorded; masked tokens keep their places."""
    recorded: dict[str, Any] = {}
    if is_prompt_redacted and response.prompt_token_ids is not None:
        recorded["prompt_token_ids"] = [MASKED_TOKEN_ID] * len(response.prompt_token_ids)
    if response.documents is not None:
        recorded["documents"] = redactor.redact_value(response.documents)
    for name in ("id", "model"):
        told = getattr(response, name)
        if told is not None and (masked := redactor.redact_text(told)) is not told:
            recorded[name] = masked
    reasons = [redactor.redact_text(reason) for reason in response.finish_reasons]
    if any(new is not old for new, old in zip(reasons, response.finish_reasons, strict=True)):
        recorded["finish_reasons"] = reasons
    messages = [redactor.redact_message(message) for message in response.messages]
    if any(new is not old for new, old in zip(messages, response.messages, strict=True)):
        messages = [_drop_token_lists(message) for message in messages]
        recorded |= {"messages": messages, "is_redacted": True, **_mask_tokens(response, redactor)}
    return replace(response, **recorded) if recorded else response


def _drop_token_lists(message: Message) -> Message:
    """Message without what spells an answer once more, token by token."""
    extra = message.get("extra", {})
    if _TOKEN_LISTS.isdisjoint(extra):
        return message
    kept = {key: value for key, value in extra.items() if key not in _TOKEN_LISTS}
    return {**message, "extra": kept}


def _mask_tokens(response: LLMResponse, redactor: "Redactor") -> dict[str, Any]:
    """Mask the tokens that spell what was redacted; all of them when their texts are not known."""
    tokens = response.response_tokens
    ids, logprobs = response.response_token_ids, response.response_logprobs
    length = max(len(each) for each in (tokens or (), ids or (), logprobs or ()))
    masked = [True] * length
    if tokens is not None and len(tokens) == length:
        masked = redactor.redact_tokens(tokens, "".join(tokens))
        masked = masked if any(masked) else [True] * length  # the texts did not show it
    return {
        "response_tokens": tokens
        and ["" if hide else token for hide, token in zip(masked, tokens, strict=False)],
        "response_token_ids": ids
        and [MASKED_TOKEN_ID if hide else i for hide, i in zip(masked, ids, strict=False)],
        "response_logprobs": logprobs
        and [None if hide else p for hide, p in zip(masked, logprobs, strict=False)],
    }
