"""One sample of an Inspect log -> the spans of its run.

Each call of the model is an event with its whole prompt, so that sub-agents and cut histories are
branches as they were. Calls that scorers make belong to their verdicts, those of other roles (a
simulated user, say) are steps. A sample without events is read from its messages.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources.inspect_messages import MessageReader, read_verbatim_arguments
from starpo_trace.convert.sources.inspect_scores import read_scores
from starpo_trace.convert.sources.isotimes import read_time
from starpo_trace.convert.sources.runs import Answer, RunFacts, RunWriter
from starpo_trace.messages import dump_json

FORM: Final = "inspect"

_PARAMETERS: Final = {
    semconv.REQUEST_TEMPERATURE: "temperature",
    semconv.REQUEST_TOP_P: "top_p",
    semconv.REQUEST_TOP_K: "top_k",
    semconv.REQUEST_MAX_TOKENS: "max_tokens",
    semconv.REQUEST_SEED: "seed",
    semconv.REQUEST_STOP_SEQUENCES: "stop_seqs",
    semconv.REQUEST_FREQUENCY_PENALTY: "frequency_penalty",
    semconv.REQUEST_PRESENCE_PENALTY: "presence_penalty",
    semconv.REQUEST_CHOICE_COUNT: "num_choices",
    semconv.REQUEST_REASONING_LEVEL: "reasoning_effort",
}
_USAGE: Final = {
    semconv.USAGE_INPUT_TOKENS: "input_tokens",
    semconv.USAGE_OUTPUT_TOKENS: "output_tokens",
    semconv.USAGE_CACHE_READ_TOKENS: "input_tokens_cache_read",
    semconv.USAGE_CACHE_WRITE_TOKENS: "input_tokens_cache_write",
    semconv.USAGE_REASONING_TOKENS: "reasoning_tokens",
}
_TOOL_FIELDS: Final = ("name", "description", "parameters")
_CUT: Final = frozenset({"max_tokens", "model_length"})
_SCORING: Final = frozenset({"scorer", "scorers"})


def read_sample(
    sample: Mapping[str, Any], evaluation: Mapping[str, Any], source: str
) -> list[SpanRow]:
    """Sample and the log's field `eval` -> spans.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it cannot be read.
    """
    task, number, epoch = evaluation.get("task"), sample["id"], sample.get("epoch")
    messages = MessageReader(sample)
    events = _Events(sample, messages)
    end, reason = _read_end(sample, events.last_stop)
    version = evaluation.get("task_version")
    facts = RunFacts(
        form=FORM,
        key=sample.get("uuid") or (evaluation.get("eval_id"), task, number, epoch),
        task_id=f"{task}/{number}",
        attempt=epoch,
        policy_id=evaluation.get("model"),
        environment_name=task,
        environment_version=None if version is None else str(version),
        agent_name=evaluation.get("solver"),
        end=end,
        end_reason=reason,
        started_ns=read_time(sample.get("started_at")),
        ended_ns=read_time(sample.get("completed_at")),
    )
    writer = RunWriter(facts, source)
    if events.calls:
        events.write(writer)
    else:
        _write_messages(writer, sample, messages)
    # The first scorer's verdict is the run's, and of equals the latest counts.
    for verdict in reversed(read_scores(sample.get("scores"), events.graders)):
        writer.reward(verdict)
    return writer.build()


class _Events:
    """The events of a sample that its run consists of."""

    def __init__(self, sample: Mapping[str, Any], messages: MessageReader) -> None:
        self._messages = messages
        self._spans: dict[Any, tuple[Any, Any, Any]] = {}
        self._events: list[tuple[Mapping[str, Any], bool]] = []
        self.graders: dict[str, str] = {}
        """Model that each scorer called, by the scorer's name."""
        self.calls = 0
        """Calls of the policy."""
        self.last_stop: str | None = None
        """Why the last answer ended."""
        for event, scorer in self._walk(sample.get("events") or []):
            self._sort(event, scorer)

    def write(self, writer: RunWriter) -> None:
        """All of them."""
        for event, is_policy in self._events:
            if is_policy:
                self._write_call(writer, event)
            else:
                self._write_step(writer, event)

    def _walk(self, events: Any) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """Events in their order, inner ones after theirs, with the scorer that they belong to."""
        stack = [iter(events)]
        scorers: list[str] = []
        while stack:
            event = next(stack[-1], None)
            if event is None:
                stack.pop()
                continue
            kind = event.get("event")
            if kind == "span_begin":
                key = (event.get("parent_id"), event.get("type"), event.get("name"))
                self._spans[event.get("id")] = key
            elif kind == "step" and event.get("type") == "scorer":  # logs of before spans
                if event.get("action") == "begin":
                    scorers.append(str(event.get("name")))
                elif scorers:
                    scorers.pop()
            yield event, scorers[-1] if scorers else self._find_scorer(event.get("span_id"))
            if isinstance(event.get("events"), list):
                stack.append(iter(event["events"]))

    def _find_scorer(self, span: Any) -> str | None:
        passed = set()
        while span in self._spans and span not in passed:
            passed.add(span)
            span, kind, name = self._spans[span]
            if kind in _SCORING:
                return str(name)
        return None

    def _sort(self, event: Mapping[str, Any], scorer: str | None) -> None:
        kind = event.get("event")
        if kind == "model" and scorer is not None:
            self.graders[scorer] = str(event.get("model"))
        elif kind == "model":
            is_policy = event.get("role") is None
            self._events.append((event, is_policy))
            if is_policy:
                self.calls += 1
                choice = _read_choice(event)
                self.last_stop = choice.get("stop_reason")
        elif kind == "tool" and scorer is None:
            self._events.append((event, False))

    def _write_call(self, writer: RunWriter, event: Mapping[str, Any]) -> None:
        output, choice = event.get("output") or {}, _read_choice(event)
        writer.set_history(self._messages.read_prompt(event))
        message, error = None, event.get("error") or output.get("error")
        if choice.get("message") is not None:
            message = self._messages.read(choice["message"], read_verbatim_arguments(event))
        elif not error:
            error = "no answer was recorded"
        config, usage = event.get("config") or {}, output.get("usage") or {}
        stop = choice.get("stop_reason")
        attributes = {
            semconv.REQUEST_MODEL: event.get("model"),
            **{key: config.get(name) for key, name in _PARAMETERS.items()},
            semconv.TOOL_DEFINITIONS: _write_tools(event.get("tools")),
            semconv.RESPONSE_ID: output.get("response_id"),
            semconv.RESPONSE_MODEL: output.get("model") if message is not None else None,
            semconv.RESPONSE_FINISH_REASONS: None if stop is None else (stop,),
            **{key: usage.get(name) for key, name in _USAGE.items()},
        }
        answer = Answer(
            message=message,
            attributes=attributes,
            error=None if error is None else str(error),
            started_ns=read_time(event.get("timestamp")),
            ended_ns=read_time(event.get("completed")),
        )
        writer.answer(answer)

    def _write_step(self, writer: RunWriter, event: Mapping[str, Any]) -> None:
        started_ns, ended_ns = read_time(event.get("timestamp")), read_time(event.get("completed"))
        if event.get("event") == "model":
            role = str(event.get("role"))
            writer.tool_step(role, kind="other", started_ns=started_ns, ended_ns=ended_ns)
            return
        error = event.get("error")
        writer.tool_step(
            event.get("function"),
            call_id=event.get("id"),
            arguments=event.get("arguments"),
            result=self._messages.resolve(event.get("result")),
            error=str(error.get("message")) if isinstance(error, Mapping) else None,
            started_ns=started_ns,
            ended_ns=ended_ns,
        )


def _read_choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = (event.get("output") or {}).get("choices")
    return choices[0] if choices else {}


def _write_tools(tools: Any) -> str | None:
    if not tools:
        return None
    return dump_json(
        [{"type": "function", **{name: tool.get(name) for name in _TOOL_FIELDS}} for tool in tools]
    )


def _write_messages(writer: RunWriter, sample: Mapping[str, Any], messages: MessageReader) -> None:
    items = [messages.resolve(item) for item in sample.get("messages") or ()]
    has_sources = any(item.get("source") == "generate" for item in items)
    for item in items:
        message = messages.read(item)
        is_sampled = item.get("source") == "generate" or not has_sources
        if message["role"] == "assistant" and is_sampled:
            model = {semconv.RESPONSE_MODEL: item.get("model")}
            writer.answer(Answer(message=message, attributes=model))
            continue
        for part in message["parts"] if message["role"] == "tool" else ():
            name, result = item.get("function"), part["response"]
            writer.tool_step(name, call_id=part["id"], result=result)
        writer.see([message])


def _read_end(sample: Mapping[str, Any], last_stop: str | None) -> tuple[str, str | None]:
    error, limit = sample.get("error"), sample.get("limit")
    if isinstance(error, Mapping):
        text = str(error.get("message") or "")
        return ("abandoned" if text.startswith("CancelledError") else "error"), text or None
    if isinstance(limit, Mapping):
        kind = limit.get("type")
        return ("abandoned" if kind == "operator" else "truncated"), str(kind)
    if last_stop in _CUT:
        return "truncated", last_stop
    is_complete = sample.get("completed_at") is not None or sample.get("scores") is not None
    return ("terminated" if is_complete else "unknown"), None
