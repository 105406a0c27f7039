"""A run that somebody recorded -> span rows, as our own recorder would have written them.

A format is a mapping onto `RunFacts`, `Answer` and `Verdict`; what its files do not tell is left
out. Ids are hashes of what tells the run apart, so a file that is read twice gives equal copies.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.otlp import MAX_TIME_NS, MalformedSpan, SpanRow, describe_fault
from starpo_trace.convert.sources.histories import RunHistory
from starpo_trace.convert.sources.runids import hash_ids
from starpo_trace.convert.sources.verdicts import Verdict, make_reward
from starpo_trace.messages import Message, dump_json

FAULTS: Final = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError),
    *(RecursionError, OverflowError),
)
"""What reading a record of unexpected form raises."""

_IDS: Final = ("id", "instance_id", "task_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a file tells of a run as a whole."""

    form: str
    """The format that it was recorded in."""
    key: Any
    """What tells it apart from every other run of this format; anything JSON can hold."""
    trajectory_id: str | None = None
    """Its trajectory's id, where others must know it; made of the root's ids otherwise."""
    task_id: str | None = None
    """What was to be done: the group that its attempts form."""
    attempt: int | None = None
    """Which attempt."""
    seed: int | None = None
    """Its seed."""
    policy_id: str | None = None
    """The model that acted."""
    environment_name: str | None = None
    """Where it acted."""
    environment_version: str | None = None
    """Which version of that."""
    agent_name: str | None = None
    """The program around the model."""
    end: str = "unknown"
    """terminated | truncated | abandoned | error | unknown."""
    end_reason: str | None = None
    """The file's own word for it."""
    started_ns: int | None = None
    """When it began, Unix time."""
    ended_ns: int | None = None
    """When it ended, Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One call of the model."""

    message: Message | None
    """What it answered; None when it did not."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Further attributes of the span: model, usage, tools, parameters; None is left out."""
    error: str | None = None
    """What failed."""
    started_ns: int | None = None
    """When it was asked, Unix time."""
    ended_ns: int | None = None
    """When it had answered, Unix time."""


class RunWriter:
    """Gathers the spans of one run, in the order of its steps."""

    def __init__(self, facts: RunFacts, source: str) -> None:
        self._facts = facts
        self._source = source
        self._trace_id, self._root_id = hash_ids(facts.form, facts.key)
        self.trajectory_id = facts.trajectory_id or f"{self._trace_id}-{self._root_id}"
        self._history = RunHistory()
        self._rows: list[SpanRow] = []
        self._num_steps = 0
        self._latest_ns = (facts.started_ns or 0) - 1

    def see(self, messages: Sequence[Message]) -> None:
        """Add messages that the model sees from its next call on."""
        self._history.extend(messages)

    def set_history(self, messages: Sequence[Message]) -> None:
        """Say what all of the next call's prompt is."""
        self._history.replace(messages)

    def answer(self, answer: Answer) -> None:
        """Add a call of the model on the history so far, which its answer then belongs to."""
        attributes = {
            semconv.OPERATION_NAME: "chat",
            semconv.REQUEST_MODEL: self._facts.policy_id,
            **self._history.describe(),
            **answer.attributes,
        }
        if answer.message is not None:
            attributes[semconv.OUTPUT_MESSAGES] = dump_json([answer.message])
        if answer.error is not None:
            attributes.setdefault(semconv.ERROR_TYPE, "error")
        self._add_step("chat", "llm", attributes, answer.error, answer.started_ns, answer.ended_ns)
        if answer.message is not None:
            self._history.extend([answer.message])
            self._history.hold()

    def tool_step(
        self,
        name: str | None,
        *,
        call_id: str | None = None,
        arguments: Any = None,
        result: Any = None,
        kind: str = "tool",
        error: str | None = None,
        started_ns: int | None = None,
        ended_ns: int | None = None,
    ) -> None:
        """Add what a tool did, or (by its kind) somebody else in the run."""
        attributes = {
            semconv.OPERATION_NAME: "execute_tool" if kind == "tool" else None,
            semconv.STEP_KIND: kind,
            semconv.TOOL_NAME: name,
            semconv.TOOL_CALL_ID: call_id,
            semconv.TOOL_CALL_ARGUMENTS: _write_text(arguments),
            semconv.TOOL_CALL_RESULT: _write_text(result),
        }
        label = "execute_tool" if kind == "tool" else kind
        self._add_step(
            f"{label} {name or ''}".strip(), "step", attributes, error, started_ns, ended_ns
        )

    def observe(self) -> None:
        """Add what was seen since the last call, when no call follows on it."""
        if self._history.num_new:
            attributes = self._history.describe()
            self._add("observe", "observation", {**attributes, semconv.STEP: self._num_steps})

    def reward(self, verdict: Verdict) -> None:
        """Add a verdict on the whole run."""
        key = (self._trace_id, self._root_id, verdict.name, verdict.source, verdict.value)
        row = make_reward(
            verdict,
            self.trajectory_id,
            form=self._facts.form,
            ids=hash_ids(self._facts.form, "reward", *key),
            source=self._source,
            time_ns=self._tell_time(verdict.time_ns),
        )
        self._rows.append(replace(row, links=((self._trace_id, self._root_id),)))

    def build(self) -> list[SpanRow]:
        """All spans of the run, the root first."""
        self.observe()
        facts = self._facts
        attributes = {
            semconv.OPERATION_NAME: "invoke_agent",
            semconv.AGENT_NAME: facts.agent_name,
            semconv.TASK_ID: facts.task_id,
            semconv.ATTEMPT: facts.attempt,
            semconv.SEED: facts.seed,
            semconv.POLICY_ID: facts.policy_id,
            semconv.ENVIRONMENT_NAME: facts.environment_name,
            semconv.ENVIRONMENT_VERSION: facts.environment_version,
            semconv.TRAJECTORY_END: None if facts.end == "unknown" else facts.end,
            semconv.TRAJECTORY_END_REASON: facts.end_reason,
            semconv.TRAJECTORY_NUM_STEPS: self._num_steps,
        }
        root = SpanRow(
            source=self._source,
            trace_id=self._trace_id,
            span_id=self._root_id,
            name=f"invoke_agent {facts.agent_name or facts.form}",
            scope=semconv.SCOPE_NAME,
            start_ns=_limit_time(facts.started_ns or 0),
            end_ns=None if facts.ended_ns is None else _limit_time(facts.ended_ns),
            attributes=self._complete("trajectory", attributes),
        )
        return [root, *self._rows]

    def _add_step(
        self,
        name: str,
        record: str,
        attributes: dict[str, Any],
        error: str | None,
        started_ns: int | None,
        ended_ns: int | None,
    ) -> None:
        attributes = {**attributes, semconv.STEP: self._num_steps}
        self._add(name, record, attributes, error, started_ns, ended_ns)
        self._num_steps += 1

    def _add(
        self,
        name: str,
        record: str,
        attributes: dict[str, Any],
        error: str | None = None,
        started_ns: int | None = None,
        ended_ns: int | None = None,
    ) -> None:
        number = len(self._rows)
        row = SpanRow(
            source=self._source,
            trace_id=self._trace_id,
            span_id=hash_ids(self._trace_id, self._root_id, number)[1],
            parent_id=self._root_id,
            name=name,
            scope=semconv.SCOPE_NAME,
            start_ns=self._tell_time(started_ns),
            end_ns=None if ended_ns is None else _limit_time(ended_ns),
            error=error,
            attributes=self._complete(record, attributes),
        )
        self._rows.append(row)

    def _complete(self, record: str, attributes: dict[str, Any]) -> dict[str, Any]:
        """What there is to say, as a span of this run."""
        own = {
            semconv.SCHEMA: semconv.SCHEMA_VERSION,
            semconv.RECORD: record,
            semconv.TRAJECTORY_ID: self.trajectory_id,
        }
        return own | {key: value for key, value in attributes.items() if value is not None}

    def _tell_time(self, time_ns: int | None) -> int:
        """Recorded time, else the moment after the latest one: an order, no time of day."""
        self._latest_ns = _limit_time(self._latest_ns + 1 if time_ns is None else time_ns)
        return self._latest_ns


def read_each(
    items: Iterable[Any],
    read: Callable[[Any], Iterable[SpanRow]],
    *,
    source: str,
    what: str,
) -> Iterator[SpanRow | MalformedSpan]:
    """Records of runs -> their spans; one that cannot be read is one malformed span."""
    for number, item in enumerate(items):
        try:
            rows = list(read(item))
        except FAULTS as error:
            yield MalformedSpan(
                source=source,
                trace_id=None,
                span_id=None,
                name=f"{what} {_find_id(item, number)}",
                scope="",
                detail=describe_fault(error),
            )
            continue
        yield from rows


def _find_id(item: Any, number: int) -> Any:
    """What a record calls itself, else its number."""
    fields = item if isinstance(item, dict) else {}
    found = next((fields[name] for name in _IDS if name in fields), number)
    return found if isinstance(found, str | int) else number


def _write_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else dump_json(value)


def _limit_time(time_ns: int) -> int:
    return max(0, min(time_ns, MAX_TIME_NS))
