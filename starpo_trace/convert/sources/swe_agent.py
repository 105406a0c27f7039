"""SWE-agent's `.traj` files -> runs.

`history` has every message once, with the calls of tools; `trajectory` has what each step answered,
and since SWE-agent 1.1 in `query` what the model saw, which differs where old observations are cut.
Without `query` a prompt is taken for the history before the answer. The last answer, and one that
was asked for again, may be in `trajectory` alone; such an answer has no call of a tool.
"""

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from starpo_trace import semconv
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources.chats import add_tool_result, index_calls, read_message
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.runfolders import name_run, name_trajectory
from starpo_trace.convert.sources.runids import hash_content
from starpo_trace.convert.sources.runs import Answer, RunFacts, RunWriter, read_each
from starpo_trace.messages import Message

FORM: Final = "swe-agent"

_FOLDER: Final = re.compile(r"(?P<model>.+?)__.+__t-(?P<temperature>[\d.]+)__p-(?P<top_p>[\d.]+)__")
"""Name that SWE-agent gives to a run's folder."""
_CUT_SHORT: Final = ("cost", "context", "time", "limit", "early")
_FAULTY: Final = ("error", "api", "format", "forfeit", "command")


def is_run(value: Any) -> bool:
    """Whether a document is such a file."""
    if not isinstance(value, dict) or not isinstance(value.get("history"), list):
        return False
    if isinstance(value.get("trajectory"), list):
        return True
    first = value["history"][0] if value["history"] else None
    return isinstance(first, dict) and "agent" in first and "role" in first


def read_run(value: Any, file: SourceFile) -> Iterator[SpanRow | MalformedSpan]:
    """One file -> the spans of its run."""
    yield from read_each([value], lambda run: _read_run(run, file), source=file.source, what="run")


def _read_run(run: Mapping[str, Any], file: SourceFile) -> list[SpanRow]:
    config, info = _read_config(run.get("replay_config")), run.get("info") or {}
    path = file.path
    instance = _read_instance(config, path)
    name = name_run(path.parent, instance)
    folder = _FOLDER.match(name)
    model = _find(config, "agent", "model", "name") or (folder["model"] if folder else None)
    end, reason = _read_end(info.get("exit_status"))
    facts = RunFacts(
        form=FORM,
        key=(name, instance, hash_content(run)),
        trajectory_id=name_trajectory(name, instance),
        task_id=instance,
        policy_id=model,
        environment_name=run.get("environment") or FORM,
        environment_version=info.get("swe_agent_version"),
        agent_name=FORM,
        end=end,
        end_reason=reason,
    )
    writer = _Reader(run, _read_sampling(config), RunWriter(facts, file.source)).read()
    return writer.build()


class _Reader:
    """Follows history and steps side by side."""

    def __init__(self, run: Mapping[str, Any], sampling: dict[str, Any], writer: RunWriter) -> None:
        self._writer = writer
        self._sampling = sampling
        self._steps: list[Mapping[str, Any]] = run.get("trajectory") or []
        self._items: list[Mapping[str, Any]] = run["history"]
        self._next = 0
        self._calls: dict[str | None, dict[str, Any]] = {}
        self._places: dict[str, deque[int]] = defaultdict(deque)
        for place, step in enumerate(self._steps):
            self._places[_read_text(step.get("response"))].append(place)
        self._texts = {_read_text(item.get("content")) for item in self._items}
        self._seen: dict[Any, list[Message]] = defaultdict(list)

    def read(self) -> RunWriter:
        """All of it."""
        agent = None
        for item in self._items:
            message = _read_item(item)
            agent, is_new = item.get("agent"), item.get("agent") != agent
            if is_new:
                self._writer.set_history(self._seen[agent])
            self._seen[agent].append(message)
            if message["role"] == "tool":
                add_tool_result(self._writer, message, self._calls)
            elif message["role"] != "assistant" or item.get("is_demo"):
                self._writer.see([message])
            else:
                self._answer(item, message)
        self._add_steps(len(self._steps))
        return self._writer

    def _answer(self, item: Mapping[str, Any], message: Message) -> None:
        """An answer of the history, after those before it that the history lacks."""
        place = self._find_step(_read_text(item.get("content")))
        step: Mapping[str, Any] = {}
        if place is not None:
            self._add_steps(place, self._seen[item.get("agent")][:-1])
            step = self._steps[place]
            self._next = place + 1
        self._set_query(step)
        self._writer.answer(Answer(message=message, attributes=self._sampling))
        index_calls(message, self._calls)

    def _find_step(self, text: str) -> int | None:
        """Place of the step that gave a text; one that no text fits had it before it was edited."""
        places = self._places[text]
        while places and places[0] < self._next:
            places.popleft()
        if places:
            return places.popleft()
        if self._next < len(self._steps):
            response = _read_text(self._steps[self._next].get("response"))
            return None if response in self._texts else self._next
        return None

    def _add_steps(self, end: int, history: list[Message] | None = None) -> None:
        """Answers that only the steps have, each with what it led to; `history` knows of neither."""
        for step in self._steps[self._next : end]:
            self._set_query(step)
            answer = {"role": "assistant", "content": _read_text(step.get("response"))}
            message = read_message(answer)
            self._writer.answer(Answer(message=message, attributes=self._sampling))
            role = "tool" if self._calls else "user"
            seen = {"role": role, "content": _read_text(step.get("observation"))}
            self._writer.see([read_message(seen)])
            self._writer.observe()
            if history is not None:
                self._writer.set_history(history)
        self._next = max(self._next, end)

    def _set_query(self, step: Mapping[str, Any]) -> None:
        query = step.get("query")
        if isinstance(query, list) and query:
            self._writer.set_history([_read_item(item) for item in query])


def _read_item(item: Any) -> Message:
    """One entry of a history -> message, with the reasoning that SWE-agent keeps beside it."""
    if not isinstance(item, Mapping):
        raise TypeError(f"a message is a {type(item).__name__}")
    ids = item.get("tool_call_ids")
    fields = dict(item)
    if item.get("role") == "tool" and isinstance(ids, list) and len(ids) == 1:
        fields["tool_call_id"] = ids[0]
    message = read_message(fields)
    blocks = item.get("thinking_blocks")
    thoughts = [
        {"type": "reasoning", "content": block.get("thinking"), "meta": dict(block)}
        for block in blocks or ()
    ]
    return {**message, "parts": [*thoughts, *message["parts"]]} if thoughts else message


def _read_config(value: Any) -> Mapping[str, Any]:
    """The run's configuration, which is kept as a text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _find(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _read_instance(config: Mapping[str, Any], path: Path) -> str:
    found = _find(config, "problem_statement", "id")
    return str(found) if found else path.name.partition(".traj")[0]


def _read_sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    model = _find(config, "agent", "model")
    return {
        semconv.REQUEST_TEMPERATURE: _find(model, "temperature"),
        semconv.REQUEST_TOP_P: _find(model, "top_p"),
    }


def _read_end(status: Any) -> tuple[str, str | None]:
    """SWE-agent's `submitted (exit_cost)` and its like -> what ended the run."""
    if not isinstance(status, str):
        return "unknown", None
    if any(word in status for word in _CUT_SHORT):
        return "truncated", status
    if any(word in status for word in _FAULTY):
        return "error", status
    return ("terminated" if status.startswith("submitted") else "unknown"), status


def _read_text(value: Any) -> str:
    return value if isinstance(value, str) else ""
