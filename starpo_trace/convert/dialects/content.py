"""GenAI message attributes -> message-graph nodes, text, reasoning, tool calls.

Node ids are the chain hashes of `starpo_trace.messages`, so a sampled message and its echo in the
next prompt are the same node, and a rewritten history is another branch.
"""

import json
from array import array
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import orjson

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects.canonical import Columns
from starpo_trace.limits import CUT_PREFIX, is_cut
from starpo_trace.messages import Message, dump_identity, dump_json, hash_link

_MAX_LENGTH: Final = 2**31 - 1


class HistoryMismatchError(ValueError):
    """The recorded messages do not give the recorded chain hash."""


class History(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The prompt of a call, or what an observation saw."""

    nodes: tuple[Columns, ...]
    """Rows of the frame `nodes` for the messages that this span holds."""
    base_node: str | None
    """Node they continue from; None when they begin a history."""
    last_node: str | None
    """Node the prompt ends at."""
    length: int
    """Messages in the whole prompt."""
    is_recorded: bool
    """False when content was off."""


class Output(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the model answered."""

    nodes: tuple[Columns, ...] = ()
    """One row of the frame `nodes` per choice."""
    node_id: str | None = None
    """Node of the first choice."""
    text: str | None = None
    """Its text parts, joined."""
    reasoning: str | None = None
    """Its reasoning parts, joined."""
    tool_calls: list[Columns] | None = None
    """The calls it asked for, arguments verbatim; None without an answer."""
    finish_reason: str | None = None
    """Why it ended, when the message says so."""


def read_json(value: Any) -> Any:
    """JSON text (or an already structured value) -> Python value.

    Raises:
        ValueError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return json.loads(value)  # lone surrogates


def read_history(attributes: dict[str, Any]) -> History:
    """Input messages of a span -> nodes; the chain hash is verified when one was recorded.

    Raises:
        HistoryMismatchError: messages and recorded chain hash disagree.
        ValueError, TypeError: the messages are not GenAI messages.
    """
    value = attributes.get(keys.INPUT_MESSAGES)
    base = text_or_none(attributes.get(keys.HISTORY_BASE))
    if value is None and base is None:
        return History(nodes=(), base_node=None, last_node=None, length=0, is_recorded=False)
    base_length = _read_length(attributes.get(keys.HISTORY_BASE_LENGTH))
    messages = _messages(value) if value is not None and not _is_all_cut(value) else []
    messages = [*_system_message(attributes), *messages]
    nodes = _chain_nodes(messages, base, base_length)
    if keys.HISTORY_HASH in attributes:
        expected = attributes[keys.HISTORY_HASH]
        if isinstance(value, str) and _last_node(nodes, base) != expected:
            # orjson reads integers beyond 64 bits as floats; the standard library does not.
            exact = json.loads(value)
            exact = exact if isinstance(exact, list) else []
            messages = [*_system_message(attributes), *exact]
            nodes = _chain_nodes(messages, base, base_length)
        if _last_node(nodes, base) != expected and isinstance(value, str) and is_cut(value):
            return _name_cut_history(nodes, base, attributes)
        _verify_history(attributes, nodes, base, base_length)
    return History(
        nodes=nodes,
        base_node=base,
        last_node=_last_node(nodes, base),
        length=base_length + len(nodes),
        is_recorded=True,
    )


def read_output(attributes: dict[str, Any], history: History) -> Output:
    """Output messages of a span -> nodes after the prompt's last one, and the answer's parts."""
    value = attributes.get(keys.OUTPUT_MESSAGES)
    if value is None or _is_all_cut(value):
        return Output()
    messages = _messages(value)
    if not messages:
        return Output()
    nodes: tuple[Columns, ...] = ()
    if history.is_recorded:  # without the prompt the chain would claim that a history begins here
        for message in messages:  # choices: each follows the prompt
            nodes += _chain_nodes([message], history.last_node, history.length, sampled=True)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Columns] = []
    for part in messages[0]["parts"]:
        kind = part.get("type")
        if kind == "tool_call":
            calls.append(_tool_call(part))
        elif kind == "text":
            texts.append(str(part.get("content") or ""))
        elif kind == "reasoning":
            thoughts.append(str(part.get("content") or ""))
    return Output(
        nodes=nodes,
        node_id=nodes[0]["node_id"] if nodes else None,
        text=valid_text("".join(texts)) if texts else None,
        reasoning=valid_text("".join(thoughts)) if thoughts else None,
        tool_calls=calls,
        finish_reason=text_or_none(messages[0].get("finish_reason")),
    )


def read_ids(value: Any) -> list[int] | None:
    """JSON list of 32-bit integers -> list; None when absent. A masked token has a negative id.

    Raises:
        ValueError, TypeError, OverflowError: it is not such a list.
    """
    numbers = _read_list(value)
    return None if numbers is None else array("i", numbers).tolist()


def read_logprobs(value: Any) -> Sequence[float | None] | None:
    """JSON list of floats -> list; None when absent, and for the token that was masked.

    Raises:
        ValueError, TypeError, OverflowError: it is not such a list.
    """
    numbers = _read_list(value)
    if numbers is None or None not in numbers:
        return None if numbers is None else array("d", numbers).tolist()
    known = iter(array("d", [number for number in numbers if number is not None]))
    return [None if number is None else next(known) for number in numbers]


def _read_length(value: Any) -> int:
    """Number of messages or ids left out.

    Raises:
        ValueError, TypeError, OverflowError: it is no such number.
    """
    length = int(value or 0)
    if not 0 <= length <= _MAX_LENGTH:
        raise ValueError(f"{value!r} is no number of messages")
    return length


def _read_list(value: Any) -> list[Any] | None:
    if value is None or _is_all_cut(value):
        return None
    numbers = read_json(value)
    if not isinstance(numbers, list):
        raise TypeError(f"expected a JSON list of numbers, found {type(numbers).__name__}")
    return numbers


def text_or_none(value: Any) -> str | None:
    """Value -> text that UTF-8 can hold; None for None."""
    if value is None or (type(value) is str and value.isascii()):
        return value
    return valid_text(value if type(value) is str else str(value))


def valid_text(text: str) -> str:
    """Text -> text that UTF-8 can hold: lone surrogates become `?`."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _is_all_cut(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(f'"{CUT_PREFIX}')


def _name_cut_history(
    nodes: tuple[Columns, ...], base: str | None, attributes: dict[str, Any]
) -> History:
    """History with texts cut by a limit: it still ends where the recorded hash says."""
    last = text_or_none(attributes[keys.HISTORY_HASH])
    if nodes:
        nodes = (*nodes[:-1], {**nodes[-1], "node_id": last})
    length = attributes.get(keys.HISTORY_LENGTH)
    return History(
        nodes=nodes,
        base_node=base,
        last_node=last,
        length=length if isinstance(length, int) else len(nodes),
        is_recorded=True,
    )


def _messages(value: Any) -> list[Message]:
    messages = read_json(value)
    if not isinstance(messages, list):
        raise TypeError(f"messages are a {type(messages).__name__}, not a list")
    for message in messages:
        parts = message.get("parts") if isinstance(message, dict) else None
        if not isinstance(parts, list):
            raise TypeError("a message has no list `parts`")
        for part in parts:
            if not isinstance(part, dict):
                raise TypeError("a message part is not an object")
        if "role" not in message:
            message["role"] = "user"
    return messages


def _system_message(attributes: dict[str, Any]) -> list[Message]:
    parts = read_json(attributes.get("gen_ai.system_instructions"))
    return [{"role": "system", "parts": parts}] if isinstance(parts, list) and parts else []


def _chain_nodes(
    messages: list[Message], base: str | None, depth: int, *, sampled: bool = False
) -> tuple[Columns, ...]:
    chain = bytes.fromhex(base) if base else b""
    parent = base
    nodes: list[Columns] = []
    for message in messages:
        chain = hash_link(chain, dump_identity(message))
        node_id = chain.hex()
        nodes.append(
            {
                "node_id": node_id,
                "parent_id": parent,
                "depth": depth,
                "role": valid_text(str(message["role"])),
                "message": dump_json(message),
                "sampled": sampled,
            }
        )
        parent = node_id
        depth += 1
    return tuple(nodes)


def _last_node(nodes: tuple[Columns, ...], base: str | None) -> str | None:
    return nodes[-1]["node_id"] if nodes else base


def _verify_history(
    attributes: dict[str, Any], nodes: tuple[Columns, ...], base: str | None, base_length: int
) -> None:
    expected = attributes[keys.HISTORY_HASH] or None
    actual = _last_node(nodes, base)
    if actual != expected:
        raise HistoryMismatchError(f"messages give {actual}, the span says {expected}")
    length = attributes.get(keys.HISTORY_LENGTH)
    if length is not None and length != base_length + len(nodes):
        raise HistoryMismatchError(f"{base_length} + {len(nodes)} messages, the span says {length}")


def _tool_call(part: dict[str, Any]) -> Columns:
    arguments = part.get("arguments")
    return {
        "id": text_or_none(part.get("id")),
        "name": text_or_none(part.get("name")),
        "arguments": arguments
        if arguments is None
        else valid_text(arguments if isinstance(arguments, str) else dump_json(arguments)),
    }
