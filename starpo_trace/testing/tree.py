"""Spans -> a tree as text: what a run did, a line per step, without ids and times.

shop: terminated
  0 chat -> stock({"sku": "A7"})
  1 stock({"sku": "A7"}) = "3"
  2 chat -> "3 are left."
  solved = 1 (environment)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace import semconv

_MAX_TEXT: Final = 60


def render_tree(spans: Sequence[ReadableSpan]) -> str:
    """Ended spans -> text; siblings in the order they began, rewards last."""
    known = {_read_id(span) for span in spans}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in sorted(spans, key=_sort_key):
        parent = span.parent.span_id if span.parent is not None else None
        children.setdefault(parent if parent in known else None, []).append(span)
    return "\n".join(_render_level(children, None, 0))


def _read_id(span: ReadableSpan) -> int | None:
    context = span.get_span_context()
    return None if context is None else context.span_id


def _sort_key(span: ReadableSpan) -> tuple[bool, int, int]:
    attributes: Mapping[str, Any] = span.attributes or {}
    is_reward = attributes.get(semconv.RECORD) == "reward"
    return is_reward, attributes.get(semconv.STEP, -1), span.start_time or 0


def _render_level(
    children: Mapping[int | None, Sequence[ReadableSpan]], parent: int | None, depth: int
) -> Iterator[str]:
    for span in children.get(parent, ()):
        yield "  " * depth + _render_span(span)
        yield from _render_level(children, _read_id(span), depth + 1)


def _render_span(span: ReadableSpan) -> str:
    attributes: Mapping[str, Any] = span.attributes or {}
    record = attributes.get(semconv.RECORD)
    if record == "trajectory":
        text = f"{attributes.get(semconv.AGENT_NAME)}: {attributes.get(semconv.TRAJECTORY_END)}"
    elif record == "reward":
        value = attributes.get(semconv.EVALUATION_VALUE, 0.0)
        source = attributes.get(semconv.REWARD_SOURCE)
        text = f"{attributes.get(semconv.EVALUATION_NAME)} = {value:g} ({source})"
    elif record == "llm":
        text = f"{_step(attributes)}{attributes[semconv.OPERATION_NAME]} -> {_answer(attributes)}"
    elif record == "step":
        text = f"{_step(attributes)}{_render_step(span, attributes)}"
    else:
        text = span.name
    kind = attributes.get(semconv.ERROR_TYPE)
    return text if kind is None else f"{text} ! {kind}"


def _step(attributes: Mapping[str, Any]) -> str:
    step = attributes.get(semconv.STEP)
    return "" if step is None else f"{step} "


def _render_step(span: ReadableSpan, attributes: Mapping[str, Any]) -> str:
    name = attributes.get(semconv.TOOL_NAME, span.name)
    call = f"{name}({_shorten(attributes.get(semconv.TOOL_CALL_ARGUMENTS, ''))})"
    result = attributes.get(semconv.TOOL_CALL_RESULT)
    return call if result is None else f"{call} = {_shorten(result)}"


def _answer(attributes: Mapping[str, Any]) -> str:
    said: list[str] = []
    for message in json.loads(attributes.get(semconv.OUTPUT_MESSAGES, "[]")):
        for part in message["parts"]:
            if part["type"] == "tool_call":
                said.append(f"{part['name']}({_shorten(part['arguments'] or '')})")
            elif part["type"] == "text":
                said.append(f'"{_shorten(part["content"])}"')
            else:
                said.append(part["type"])
    outcome = attributes.get(semconv.STREAM_OUTCOME, "exhausted")
    ending = "" if outcome == "exhausted" else f" [{outcome}]"
    return (" + ".join(said) or "nothing") + ending


def _shorten(text: Any) -> str:
    """One line of a text; some servers send arguments as an object."""
    line = " ".join((text if isinstance(text, str) else json.dumps(text)).split())
    return line if len(line) <= _MAX_TEXT else f"{line[:_MAX_TEXT]}..."
