"""Exports of Langfuse -> span rows: traces with their observations, observations, scores.

Of a span that came by OTLP the original attributes, scope and resource stand in the observation's
metadata, but for prompt and answer, which Langfuse moves into fields of its own. Both are given to
the dialects: the original's first, then Langfuse's own.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import langfuse
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.otlp import DecodeError, MalformedSpan, SpanRow
from starpo_trace.convert.sources.feedback import ANY, Feedback, make_carrier
from starpo_trace.convert.sources.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    make_malformed,
    read_attributes,
    read_id,
    read_records,
    read_time,
)

_ANNOTATORS: Final = {"ANNOTATION": "HUMAN", "EVAL": "LLM"}
"""Sources of scores; one sent by a program (`API`) may be anybody's."""
_WORDS: Final = frozenset({"CATEGORICAL", "TEXT"})
"""Kinds of scores whose number is an index, or nothing."""
_SNAKE: Final = re.compile("_([a-z])")
_OBSERVATION_FIELDS: Final = frozenset(
    {"id", "traceId", "type", "startTime", "parentObservationId"}
)
_SCORE_FIELDS: Final = frozenset({"id", "name", "value", "source", "dataType", "timestamp"})
_TRACE_FIELDS: Final = frozenset({"id", "timestamp", "name", "bookmarked", "public"})
_FIELDS: Final[Mapping[str, str]] = {
    langfuse.INPUT: "input",
    langfuse.OUTPUT: "output",
    langfuse.MODEL: "model",
    langfuse.MODEL_PARAMETERS: "modelParameters",
    langfuse.USAGE: "usageDetails",
    langfuse.TOOLS: "toolDefinitions",
    langfuse.SESSION: "sessionId",
}
_RESTORED: Final = (keys.INPUT_MESSAGES, keys.OUTPUT_MESSAGES, keys.TOOL_DEFINITIONS)
_USAGE: Final = {
    keys.USAGE_INPUT_TOKENS: ("llm.token_count.prompt", "gen_ai.usage.prompt_tokens"),
    keys.USAGE_OUTPUT_TOKENS: ("llm.token_count.completion", "gen_ai.usage.completion_tokens"),
}
"""Counts -> other names under which the original may have them."""
_RAW_USAGE: Final = re.compile(r'"(prompt|input)_tokens"\s*:\s*\d')


def is_trace(value: Any) -> bool:
    """Whether a JSON value is a trace with its observations."""
    if not isinstance(value, Mapping):
        return False
    observations = value.get("observations")
    if not isinstance(observations, list):
        return False
    if isinstance(value.get("trace"), Mapping):
        return True
    first = observations[0] if observations else None
    is_given = isinstance(first, Mapping) and is_observation(first.keys())
    return is_given or (not observations and value.keys() >= {"id", "timestamp", "scores"})


def is_observation(names: Collection[str]) -> bool:
    """Whether a record with these names is an observation."""
    return {_camel(name) for name in names} >= _OBSERVATION_FIELDS


def is_score(names: Collection[str]) -> bool:
    """Whether a record with these names is a score."""
    return {_camel(name) for name in names} >= _SCORE_FIELDS


def is_trace_row(names: Collection[str]) -> bool:
    """Whether a record with these names is a trace by itself."""
    return {_camel(name) for name in names} >= _TRACE_FIELDS


def read_record(record: Mapping[str, Any], source: str) -> SpanRow | MalformedSpan:
    """An observation or a score -> span row.

    Raises:
        ValueError, TypeError, KeyError: a field cannot be read, or it is a trace by itself.
    """
    if is_observation(record.keys()):
        return _read_observation(record, source)
    if is_score(record.keys()):
        return _read_score(record, source)
    raise DecodeError("a trace of Langfuse without its observations; export the observations")


def read_trace(value: Mapping[str, Any], source: str) -> Iterator[SpanRow | MalformedSpan]:
    """A trace with its observations and scores -> span rows."""
    trace = value["trace"] if isinstance(value.get("trace"), Mapping) else value
    session = trace.get("sessionId")

    def read(record: Mapping[str, Any]) -> SpanRow:
        is_told = record.get("sessionId") is not None or session is None
        return _read_observation(record if is_told else {**record, "sessionId": session}, source)

    yield from read_records(value["observations"], read, source)
    scores = trace.get("scores", value.get("scores")) or ()
    for score in scores:
        if isinstance(score, Mapping):  # a list of ids where scores were not asked for
            full = {"traceId": trace.get("id"), **score}
            yield from read_records([full], lambda each: _read_score(each, source), source)
        else:
            yield make_malformed(score, source, f"score {score!r} is only named")


def _read_observation(record: Mapping[str, Any], source: str) -> SpanRow:
    fields = _rename(record)
    metadata = _load(fields.get("metadata"))
    metadata = metadata if isinstance(metadata, Mapping) else {}
    scope, resource = _load(metadata.get("scope")), _load(metadata.get("resourceAttributes"))
    original = _load(metadata.get("attributes"))
    is_error = str(fields.get("level") or "").upper() == "ERROR"
    parent_id = fields.get("parentObservationId")
    own = {name: fields[other] for name, other in _FIELDS.items() if fields.get(other) is not None}
    row = SpanRow(
        source=source,
        trace_id=read_id(fields["traceId"], TRACE_DIGITS, is_free=True),
        span_id=read_id(fields["id"], SPAN_DIGITS, is_free=True),
        parent_id=read_id(parent_id, SPAN_DIGITS, is_free=True) if parent_id else None,
        name=str(fields.get("name") or ""),
        scope=str((scope.get("name") if isinstance(scope, Mapping) else scope) or ""),
        start_ns=read_time(fields.get("startTime")),
        end_ns=read_time(fields.get("endTime")) or None,
        error=str(fields.get("statusMessage") or "") if is_error else None,
        attributes={
            **own,
            langfuse.KIND: str(fields["type"]),
            **(read_attributes(original) if isinstance(original, Mapping | list) else {}),
        },
        resource=read_attributes(resource) if isinstance(resource, Mapping) else {},
    )
    if str(fields["type"]).upper() == "GENERATION":
        _restore_call(row)
    return row


def _restore_call(row: SpanRow) -> None:
    """Give an original span of GenAI or OpenInference what Langfuse took out of it."""
    attributes = row.attributes
    told = langfuse.translate(row)
    if keys.OPERATION_NAME in attributes:
        for key in _RESTORED:
            if key in told:
                attributes.setdefault(key, told[key])
    elif "openinference.span.kind" not in attributes or _RAW_USAGE.search(
        str(attributes.get("output.value"))
    ):
        return  # counted by whom it came from
    for key, others in _USAGE.items():
        if key in told and not any(name in attributes for name in others):
            attributes.setdefault(key, told[key])


def _read_score(record: Mapping[str, Any], source: str) -> SpanRow:
    fields = _rename(record)
    kind = str(fields.get("dataType") or "NUMERIC").upper()
    changed = fields.get("updatedAt") or fields.get("timestamp")
    trace_id, span_id = fields.get("traceId"), fields.get("observationId")
    value = fields.get("value")
    session = fields.get("sessionId")
    feedback = Feedback(
        key=f"langfuse:{fields.get('id')}:{changed}",
        name=str(fields.get("name") or "score"),
        value=None if kind in _WORDS else float(value) if isinstance(value, str) else value,
        label=fields.get("stringValue") or None,
        explanation=fields.get("comment"),
        annotator=_ANNOTATORS.get(str(fields.get("source") or "").upper()),
        identifier=fields.get("id"),
        time_ns=read_time(changed),
        trace_id=read_id(trace_id, TRACE_DIGITS, is_free=True) if trace_id else ANY,
        span_id=read_id(span_id, SPAN_DIGITS, is_free=True) if span_id else ANY,
        session_id=None if session is None else str(session),
    )
    return make_carrier(feedback, source)


def _rename(record: Mapping[str, Any]) -> dict[str, Any]:
    """Names as the API has them; those of files have underscores, and no value is an empty text."""
    fields = {_camel(name): None if value == "" else value for name, value in record.items()}
    if fields.get("model") is None:
        fields["model"] = fields.get("providedModelName")
    return fields


def _camel(name: str) -> str:
    return _SNAKE.sub(lambda found: found[1].upper(), name)


def _load(value: Any) -> Any:
    """A value, also as JSON text; text that is none stays text."""
    if isinstance(value, list) and all(
        isinstance(each, Mapping) and each.keys() == {"key", "value"} for each in value
    ):
        return {each["key"]: each["value"] for each in value}  # a map of a Parquet file
    try:
        return read_json(value) if isinstance(value, str) and value[:1] in "{[" else value
    except (ValueError, RecursionError):
        return value
