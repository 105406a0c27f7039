"""Turns and the message graph of a trajectory -> spans of its model calls and observations."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.otlpjson import OutSpan, derive_id
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.convert.writers.tokens import restore_prompts
from starpo_trace.limits import is_cut
from starpo_trace.mergepatch import load_json
from starpo_trace.messages import Message, dump_json, extend_chain

_FAILED_STREAMS: Final = frozenset({"cut", "closed", "dropped", "cancelled", "error"})


@dataclass(slots=True, kw_only=True)
class CallWriter:
    """Writes calls in order; remembers which messages were written."""

    trajectory: TrajectoryRows
    """The trajectory."""
    mode: str
    """`delta`: each message once; `full`: with every call that read it."""
    place: Callable[[Row], str]
    """Turn -> the trace that its span is in."""
    common: Callable[[str], dict[str, Any]]
    """Record -> attributes that every span of that kind has."""
    _written: set[str] = field(default_factory=set)

    def write_turns(self) -> list[OutSpan]:
        """A span for each turn."""
        prompts = restore_prompts(self.trajectory.turns)
        others = self._list_other_choices()
        spans = []
        for turn, prompt in zip(self.trajectory.turns, prompts, strict=True):
            error_type, message = _split_error(turn)
            outcome = turn["outcome"]
            model = turn["model"]
            attributes = {
                **self.common("llm"),
                keys.OPERATION_NAME: "chat",
                keys.STEP: turn["step"],
                keys.STEP_KIND: turn["step_kind"],
                keys.REQUEST_MODEL: model,
                keys.REQUEST_TEMPERATURE: turn["temperature"],
                keys.REQUEST_TOP_P: turn["top_p"],
                keys.REQUEST_TOP_K: turn["top_k"],
                keys.RESPONSE_FINISH_REASONS: _as_list(turn["finish_reason"]),
                keys.USAGE_INPUT_TOKENS: turn["input_tokens"],
                keys.USAGE_OUTPUT_TOKENS: turn["output_tokens"],
                keys.TOOL_DEFINITIONS: turn["tool_definitions"],
                keys.STREAM_OUTCOME: outcome if outcome in _FAILED_STREAMS else None,
                keys.ERROR_TYPE: error_type,
                **self._write_prompt(turn),
                keys.OUTPUT_MESSAGES: self._write_answer(turn, others.get(turn["turn"], [])),
                **self._write_tokens(turn, prompt),
            }
            spans.append(
                OutSpan(
                    trace_id=self.place(turn),
                    span_id=turn["span_id"],
                    name="chat" if model is None else f"chat {model}",
                    start_ns=self._find_start(turn),
                    end_ns=turn["ended_ns"],
                    is_client=True,
                    error=message,
                    attributes=attributes,
                )
            )
        return spans

    def write_observations(self) -> Iterator[OutSpan]:
        """Spans for what was seen that no call has read or said."""
        nodes = self.trajectory.nodes
        parents = {node["parent_id"] for node in nodes.values()}
        leaves = [each for each in nodes if each not in self._written and each not in parents]
        time_ns = self.trajectory.row["ended_ns"] or self.trajectory.row["started_ns"] or 0
        for number, leaf in enumerate(leaves):
            yield OutSpan(
                trace_id=self.trajectory.row["trace_id"],
                span_id=derive_id(8, self.trajectory.id, "observation", number),
                name="observe",
                start_ns=time_ns,
                end_ns=time_ns,
                attributes={**self.common("observation"), **self._write_history(leaf)},
            )

    def _find_start(self, turn: Row) -> int:
        """Start of a turn; that of the run in the first datasets, whose turns have no times."""
        started_ns = turn["started_ns"]
        return (self.trajectory.row["started_ns"] or 0) if started_ns is None else started_ns

    def _list_other_choices(self) -> dict[int, list[Row]]:
        """Turn -> answers it gave beside the first one."""
        first = {turn["output_node"] for turn in self.trajectory.turns}
        found: dict[int, list[Row]] = {}
        for node in self.trajectory.nodes.values():
            if node["sampled_turn"] is not None and node["node_id"] not in first:
                found.setdefault(node["sampled_turn"], []).append(node)
        return found

    def _write_prompt(self, turn: Row) -> dict[str, Any]:
        if turn["input_node"] is not None:
            answer = self.trajectory.nodes.get(turn["output_node"] or "")
            return self._write_history(
                turn["input_node"], None if answer is None else answer["depth"]
            )
        is_empty = turn["output_node"] is not None or (
            turn["text"] is None
            and turn["tool_calls"] is None
            and "no_content" not in self.trajectory.row["reasons"]
        )
        return {keys.HISTORY_MODE: self.mode, keys.INPUT_MESSAGES: "[]"} if is_empty else {}

    def _write_history(self, last: str, length: int | None = None) -> dict[str, Any]:
        """Node -> the attributes of a history that ends there.

        Args:
            last: The node.
            length: How many messages end there, where the node itself was never recorded.
        """
        nodes = self.trajectory.nodes
        path: list[Row] = []
        is_full = self.mode == "full" and self._is_whole(last)
        node: str | None = last
        while node is not None and node in nodes and (is_full or node not in self._written):
            path.append(nodes[node])
            node = nodes[node]["parent_id"]
            if len(path) > len(nodes):
                raise UnwritableError("history_mismatch")
        path.reverse()
        messages = [load_json(each["message"]) for each in path]
        self._check_chain(node, path, messages)
        self._written.update(each["node_id"] for each in path)
        base_length = (
            path[0]["depth"] if path else nodes[last]["depth"] + 1 if last in nodes else length or 0
        )
        return {
            keys.HISTORY_MODE: "full" if node is None else "delta",
            keys.HISTORY_BASE: node,
            keys.HISTORY_BASE_LENGTH: base_length or None,
            keys.HISTORY_HASH: last,
            keys.HISTORY_LENGTH: base_length + len(path),
            keys.INPUT_MESSAGES: _join(path),
        }

    def _is_whole(self, last: str) -> bool:
        """Whether a history is there from its beginning, and nothing of it was cut."""
        nodes = self.trajectory.nodes
        node: str | None = last
        for _ in range(len(nodes) + 1):
            if node is None:
                return True
            if node not in nodes or is_cut(nodes[node]["message"]):
                return False
            node = nodes[node]["parent_id"]
        return False

    def _check_chain(self, base: str | None, path: list[Row], messages: list[Message]) -> None:
        """Refuse messages that would not be read as the same ones again."""
        chain = bytes.fromhex(base) if base else b""
        for place, (row, message) in enumerate(zip(path, messages, strict=True)):
            chain = extend_chain(chain, message)
            if chain.hex() == row["node_id"]:
                continue
            # A cut prompt ends where the whole one did, so only its last message may differ.
            if place + 1 < len(path) or not any(is_cut(each["message"]) for each in path):
                raise UnwritableError("history_mismatch")

    def _write_answer(self, turn: Row, others: list[Row]) -> str | None:
        node = self.trajectory.nodes.get(turn["output_node"] or "")
        if node is None:
            return None if turn["tool_calls"] is None else dump_json([_rebuild_answer(turn)])
        self._written.update([node["node_id"], *(each["node_id"] for each in others)])
        if node["sampled_turn"] == turn["turn"]:
            return _join([node, *others])
        # Another turn gave the same answer; only the thoughts may differ.
        message = load_json(node["message"])
        own = {key: value for key, value in message.items() if key != "finish_reason"}
        own["parts"] = [each for each in message["parts"] if each.get("type") != "reasoning"]
        if turn["reasoning"] is not None:
            own["parts"].insert(0, {"type": "reasoning", "content": turn["reasoning"]})
        texts = [dump_json(own), *(each["message"] for each in others)]
        return f"[{','.join(texts)}]"

    def _write_tokens(self, turn: Row, prompt: list[int] | None) -> dict[str, Any]:
        base, length = turn["prompt_base_turn"], turn["prompt_base_length"]
        rest = turn["prompt_token_ids"]
        turns = self.trajectory.turns
        step = None if base is None else turns[base]["step"]
        # A step is found by its number, so the base must be the first that has it.
        if (
            step is not None
            and next(each for each in turns if each["step"] == step)["turn"] != base
        ):
            rest, step, length = prompt, None, 0
        return {
            keys.PROMPT_TOKEN_IDS: _dump_numbers(rest),
            keys.PROMPT_TOKEN_IDS_BASE_STEP: step,
            keys.PROMPT_TOKEN_IDS_BASE_LENGTH: length if step is not None else None,
            keys.RESPONSE_TOKEN_IDS: _dump_numbers(turn["response_token_ids"]),
            keys.RESPONSE_LOGPROBS: _dump_numbers(turn["response_logprobs"]),
        }


def _join(nodes: list[Row]) -> str:
    """Messages -> a JSON list of their texts, word for word."""
    return f"[{','.join(node['message'] for node in nodes)}]"


def _rebuild_answer(turn: Row) -> Message:
    """What a call said whose prompt was not recorded, so that its message is nowhere."""
    parts: list[dict[str, Any]] = []
    for kind, name in (("reasoning", "reasoning"), ("text", "text")):
        if turn[name] is not None:
            parts.append({"type": kind, "content": turn[name]})
    parts += [{"type": "tool_call", **call} for call in turn["tool_calls"]]
    return {"role": "assistant", "parts": parts}


def _split_error(turn: Row) -> tuple[str | None, str | None]:
    """The text of an error -> its type and the status message; None where there is no status."""
    text = turn["error"]
    if text is None:
        return None, "" if turn["outcome"] == "error" else None
    kind, found, rest = text.partition(": ")
    if found and kind and rest and not any(each.isspace() for each in kind):
        return kind, rest
    return (text, None) if not text or not any(map(str.isspace, text)) else (None, text)


def _as_list(value: str | None) -> list[str] | None:
    return None if value is None else [value]


def _dump_numbers(numbers: list[Any] | None) -> str | None:
    if numbers is None:
        return None
    return json.dumps(numbers, separators=(",", ":"))
