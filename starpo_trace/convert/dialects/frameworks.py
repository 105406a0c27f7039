"""What some frameworks add to GenAI spans -> canonical span, or what it is instead.

Strands' loops, Alibaba's ReAct rounds, agent-framework's executors and edges only hold steps; MCP's
spans are a tool's call on its way, which the tool's own span tells better. Logfire announces spans
before they end, and tells a streamed answer in a span of its own beside the call's.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.otlp import SpanRow

MCP_METHOD: Final = "mcp.method.name"
IN_TOOL: Final = "starpo.in_tool"
"""Set on an MCP span inside of a tool's span (`starpo_trace.convert.joins`)."""
PART_OF_CALL: Final = "starpo.part_of_call"
"""Set on a span whose content another has now (`starpo_trace.convert.joins`)."""
LOGFIRE_TYPE: Final = "logfire.span_type"
_CONTAINER_OPERATIONS: Final[Mapping[str, str]] = {
    "execute_event_loop_cycle": "event_loop.cycle_id",
    "react": "gen_ai.react.round",
}
"""Operation -> the attribute that tells one from the other."""
_CONTAINER_MARKS: Final[Mapping[str, str]] = {
    "executor.process": "executor.id",
    "edge_group.process": "edge_group.type",
    "message.send": "message.type",
    "workflow.build": "workflow.id",
}
"""Beginning of a span's name -> an attribute that it has."""
_OPERATION_OF_NAME: Final[Mapping[str, str]] = {"workflow.run": "invoke_workflow"}
_RENAMED_OPERATIONS: Final[Mapping[str, str]] = {
    "text_completions": "text_completion",  # Semantic Kernel
    "chat.completions": "chat",
    "text.completions": "text_completion",
    "chat.streaming_completions": "chat",
    "enter": "invoke_workflow",  # Alibaba
}
_WORKFLOW_NAMES: Final = ("workflow.name", "workflow.id")


def matches(span: SpanRow) -> bool:
    """Whether it is a span that GenAI's conventions do not know."""
    attributes = span.attributes
    operation = str(attributes.get(keys.OPERATION_NAME))
    return (
        operation in _CONTAINER_OPERATIONS
        or operation in _RENAMED_OPERATIONS
        or MCP_METHOD in attributes
        or PART_OF_CALL in attributes
        or attributes.get(LOGFIRE_TYPE) == "pending_span"
        or _find_container(span) is not None
        or _find_workflow(span) is not None
    )


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """Span of a framework -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    attributes = span.attributes
    operation = str(attributes.get(keys.OPERATION_NAME, ""))
    if PART_OF_CALL in attributes:
        return Rejection(reason="part_of_call", detail="the span of its call holds it")
    if attributes.get(LOGFIRE_TYPE) == "pending_span":
        return Rejection(reason="part_of_call", detail="announces a span that ends later")
    if MCP_METHOD in attributes:
        return _convert_mcp(span)
    if operation in _CONTAINER_OPERATIONS:
        number = attributes.get(_CONTAINER_OPERATIONS[operation])
        return Rejection(reason="container", detail=f"{operation} {number}")
    container = _find_container(span)
    if container is not None:
        detail = f"{container} {attributes.get(_CONTAINER_MARKS[container])}"
        return Rejection(reason="container", detail=detail)
    changed: dict[str, Any] = {}
    workflow = _find_workflow(span)
    if workflow is not None:
        changed[keys.OPERATION_NAME] = workflow
        name = next((attributes[each] for each in _WORKFLOW_NAMES if each in attributes), None)
        changed[keys.AGENT_NAME] = attributes.get(keys.AGENT_NAME, name)
    else:
        changed[keys.OPERATION_NAME] = _RENAMED_OPERATIONS[operation]
    return genai.convert(replace(span, attributes={**attributes, **changed}))


def _convert_mcp(span: SpanRow) -> CanonicalSpan | Rejection:
    method = span.attributes[MCP_METHOD]
    if method != "tools/call" or span.attributes.get(IN_TOOL):
        return Rejection(reason="mcp_transport", detail=str(method))
    changed = {keys.OPERATION_NAME: "execute_tool"}
    return genai.convert(replace(span, attributes={**span.attributes, **changed}))


def _find_container(span: SpanRow) -> str | None:
    for name, mark in _CONTAINER_MARKS.items():
        if span.name.startswith(name) and mark in span.attributes:
            return name
    return None


def _find_workflow(span: SpanRow) -> str | None:
    for name, operation in _OPERATION_OF_NAME.items():
        is_named = span.name.startswith(name) and keys.OPERATION_NAME not in span.attributes
        if is_named and any(each in span.attributes for each in _WORKFLOW_NAMES):
            return operation
    return None
