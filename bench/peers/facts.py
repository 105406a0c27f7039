"""Exported spans and log records -> which facts of the calls they hold.

A fact counts wherever it is: attribute, span event or log record, as a value of its own or inside
JSON. `raw` means that it is there only inside a copy of the whole wire body (an object with
`choices`, or with `model` and `messages`) or as a piece of some other text, which somebody has yet
to parse. Where half of a fact is kept, the cell says which.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peers import expected

Exported = dict[str, Any]

_MARK = re.compile(r"abandon|abort|cancel|closed|disconnect|dropped|incomplete|interrupt|truncat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value somewhere in what was exported."""

    key: str
    """Attribute key that it lies under, and the path from there."""
    value: Any
    """String, number, list or mapping."""
    is_raw: bool
    """Whether it lies in a copy of a whole wire body."""


def walk_exported(exported: Exported) -> Iterator[Node]:
    """Every value of a scenario's spans and log records, JSON texts opened."""
    for span in exported["spans"]:
        yield from _walk("", span["attributes"])
        for event in span["events"]:
            yield from _walk(event["name"], event["attributes"])
    for log in exported["logs"]:
        yield from _walk("log", {"body": log["body"], **log["attributes"]})


def _walk(key: str, value: Any, *, is_raw: bool = False) -> Iterator[Node]:
    yield Node(key=key, value=value, is_raw=is_raw)
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            opened = json.loads(value)
        except ValueError:
            return
        yield from _walk(key, opened, is_raw=is_raw or _is_wire_body(opened))
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _walk(f"{key}.{name}", each, is_raw=is_raw)
    elif isinstance(value, list):
        for each in value:
            yield from _walk(f"{key}[]", each, is_raw=is_raw)


def _is_wire_body(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    is_responses_body = value.get("object") == "response"
    return "choices" in value or is_responses_body or {"model", "messages"} <= set(value)


def find(exported: Exported, is_wanted: Callable[[Node], bool]) -> str:
    """Whether some value is what is wanted: yes, raw or no."""
    found = [node for node in walk_exported(exported) if is_wanted(node)]
    if not exported["spans"]:
        return "no span"
    if not found:
        return "no"
    return "raw" if all(node.is_raw for node in found) else "yes"


def has_text(exported: Exported, text: str) -> str:
    """Whether a text is there as a value; `raw` when only as a piece of a longer text."""
    verdict = find(exported, lambda node: node.value == text)
    if verdict == "no":
        pieces = find(exported, lambda node: isinstance(node.value, str) and text in node.value)
        return "raw" if pieces != "no" else "no"
    return verdict


def has_numbers(exported: Exported, numbers: list[Any]) -> str:
    """Whether a list of just these numbers is there, or of entries that hold them in order."""

    def is_wanted(node: Node) -> bool:
        if not isinstance(node.value, list) or len(node.value) != len(numbers):
            return False
        values = [each.get("logprob") if isinstance(each, dict) else each for each in node.value]
        return values == numbers

    return find(exported, is_wanted)


def has_count(exported: Exported, count: int, word: str) -> str:
    """Whether a number is there under a key that says what it counts."""
    return find(exported, lambda node: node.value == count and word in node.key.lower())


def judge_arguments(exported: Exported) -> str:
    """Argument texts: as sent, or only what they decode to."""
    verbatim = [has_text(exported, arguments) for *_, arguments in expected.TOOL_CALLS]
    if "no" not in verbatim:
        return weakest(verbatim)
    decoded = [
        find(exported, lambda node, text=text: node.value == json.loads(text))
        for *_, text in expected.TOOL_CALLS
    ]
    return "value only" if set(decoded) == {"yes"} else weakest(decoded)


def judge_streamed_calls(exported: Exported) -> str:
    """Both calls of a stream: id, name, and arguments in whatever form."""
    names = [has_text(exported, text) for call in expected.TOOL_CALLS for text in call[:2]]
    arguments = judge_arguments(exported)
    return weakest([*names, "yes" if arguments == "value only" else arguments])


def judge_order(exported: Exported) -> str:
    """Text before tool calls, as parts of one list."""
    positions = set()
    for node in walk_exported(exported):
        if not isinstance(node.value, list):
            continue
        texts = [json.dumps(each, default=repr) for each in node.value]
        answer = [number for number, text in enumerate(texts) if expected.ANSWER in text]
        call = [number for number, text in enumerate(texts) if '"call_a"' in text]
        if answer and call and answer[0] != call[0]:
            positions.add(answer[0] < call[0])
    if not exported["spans"]:
        return "no span"
    if not positions:
        return "separate"
    return "yes" if positions == {True} else "tool first"


def judge_long_history(exported: Exported) -> str:
    """Every message of a long history."""
    texts = [message["content"] for message in expected.build_long_history()]
    held = {node.value for node in walk_exported(exported) if isinstance(node.value, str)}
    num_held = sum(text in held for text in texts)
    return "yes" if num_held == len(texts) else f"{num_held} of {len(texts)}"


def judge_mark(exported: Exported) -> str:
    """Whether anything says that a stream did not reach its end."""
    if not exported["spans"]:
        return "no span"
    is_error = any(span["status"] == "ERROR" for span in exported["spans"])
    if is_error or any(map(_is_mark, walk_exported(exported))):
        return "yes"
    return f"no ({exported['spans'][0]['status']})"


def _is_mark(node: Node) -> bool:
    text = str(node.value)
    if node.is_raw or len(text) > 40:
        return False
    is_finish_reason = "finish_reason" in node.key and text in {"error", "unknown"}
    return is_finish_reason or _MARK.search(f"{node.key}={text}".lower()) is not None


def judge_error(exported: Exported) -> str:
    """Whether the class of an error is named."""
    return find(
        exported,
        lambda node: (
            "type" in node.key
            and isinstance(node.value, str)
            and node.value.rpartition(".")[2] == "RateLimitError"
        ),
    )


def judge_single_trace(exported: Exported) -> str:
    """Whether the spans of a run form one trace."""
    num_traces = len({span["trace_id"] for span in exported["spans"]})
    return "yes" if num_traces == 1 else f"no ({num_traces} traces)"


def judge_history_once(exported: Exported) -> str:
    """Whether the first message of a run is exported once, however many calls repeat it."""
    apart = [{"spans": [span], "logs": []} for span in exported["spans"]]
    apart += [{"spans": [], "logs": [log]} for log in exported["logs"]]
    copies = sum(
        any(node.value == expected.SYSTEM_PROMPT for node in walk_exported(each)) for each in apart
    )
    return "yes" if copies == 1 else f"no ({copies} copies)"


def judge_recorded_once(exported: Exported, text: str) -> str:
    """Whether a call made exactly one span, which holds the answer."""
    num_spans = len(exported["spans"])
    return has_text(exported, text) if num_spans <= 1 else f"no ({num_spans} spans)"


_ORDER = ("yes", "value only", "raw", "no", "no span")


def weakest(verdicts: list[str]) -> str:
    """The least of several verdicts."""
    return max(verdicts, key=_ORDER.index)


def judge_usage(exported: Exported) -> str:
    """Cached and reasoning tokens."""
    counts = {
        "cached": has_count(exported, expected.CACHED_TOKENS, "cache"),
        "reasoning": has_count(exported, expected.REASONING_TOKENS, "reasoning"),
    }
    kept = [name for name, verdict in counts.items() if verdict == "yes"]
    return f"{kept[0]} only" if len(kept) == 1 else weakest(list(counts.values()))


def judge_responses(exported: Exported) -> str:
    """Message and tool call of a Responses API answer, the call by the id its result will name."""
    call_id, name, _ = expected.TOOL_CALLS[0]
    return weakest([has_text(exported, text) for text in (expected.ANSWER, call_id, name)])


FACTS: list[tuple[str, str, Callable[[Exported], str]]] = [
    ("reasoning", "reasoning", lambda e: has_text(e, expected.REASONING)),
    ("reasoning, streamed", "reasoning_streamed", lambda e: has_text(e, expected.REASONING)),
    ("prompt token ids", "tokens", lambda e: has_numbers(e, expected.PROMPT_IDS)),
    ("response token ids", "tokens", lambda e: has_numbers(e, expected.RESPONSE_IDS)),
    (
        "token ids, streamed",
        "tokens_streamed",
        lambda e: weakest(
            [has_numbers(e, expected.PROMPT_IDS), has_numbers(e, expected.RESPONSE_IDS)]
        ),
    ),
    ("log-probabilities", "tokens", lambda e: has_numbers(e, expected.LOGPROBS)),
    ("log-probabilities, streamed", "tokens_streamed", lambda e: has_numbers(e, expected.LOGPROBS)),
    ("arguments verbatim", "tools", judge_arguments),
    ("part order, text before tool calls", "tools", judge_order),
    ("parallel tool calls, streamed", "tools_streamed", judge_streamed_calls),
    ("arguments verbatim, streamed", "tools_streamed", judge_arguments),
    (
        "tool schemas at 200 messages",
        "long_history",
        lambda e: has_text(e, expected.PARAMETER_DESCRIPTION),
    ),
    (
        "system prompt at 200 messages",
        "long_history",
        lambda e: has_text(e, expected.SYSTEM_PROMPT),
    ),
    ("every message at 200 messages", "long_history", judge_long_history),
    ("stream left inside `with` is marked", "stream_broken_in_with", judge_mark),
    ("stream dropped is marked", "stream_broken_and_dropped", judge_mark),
    ("stream cancelled (async) is marked", "stream_cancelled", judge_mark),
    ("connection lost in a stream is marked", "stream_cut", judge_mark),
    ("cached and reasoning tokens", "usage", judge_usage),
    ("cached and reasoning tokens, streamed", "usage_streamed", judge_usage),
    ("one trace per run", "run", judge_single_trace),
    ("one trace per run, calls in threads", "run_with_threads", judge_single_trace),
    ("history exported once", "run", judge_history_once),
    (
        "`with_raw_response`",
        "raw_response",
        lambda e: judge_recorded_once(e, expected.ANSWER),
    ),
    (
        "`with_streaming_response`",
        "streaming_response",
        lambda e: judge_recorded_once(e, expected.ANSWER),
    ),
    ("`parse`", "parsed", lambda e: judge_recorded_once(e, '{"answer": 4}')),
    ("`stream` helper", "stream_helper", lambda e: judge_recorded_once(e, expected.ANSWER)),
    ("Responses API: message, call by its id", "responses", judge_responses),
    ("the same, streamed", "responses_streamed", judge_responses),
    (
        "Responses API: reasoning summary",
        "responses",
        lambda e: has_text(e, expected.REASONING),
    ),
    (
        "Responses API: encrypted reasoning",
        "responses",
        lambda e: has_text(e, expected.ENCRYPTED),
    ),
    (
        "both, streamed",
        "responses_streamed",
        lambda e: weakest([has_text(e, expected.REASONING), has_text(e, expected.ENCRYPTED)]),
    ),
    ("errors by class", "error", judge_error),
]
"""Row, scenario, judge."""
