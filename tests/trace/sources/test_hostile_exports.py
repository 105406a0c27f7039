"""Exports with any value in any place -> spans, malformed spans or damage; never an exception."""

import copy
import json
from random import Random

import pytest
import test_langfuse
import test_mlflow
import test_phoenix
from comparing import convert

from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.errors import SourceError

VALUES = [
    *(None, True, -1, 1.5, 10**30, "", "x", "{", "[1]", '{"a": [{}]}', "nan"),
    *([], [None], [5], [[]], {}, {"a": {"b": []}}, {"role": "user"}, {"type": "function"}),
]
DOCUMENTS = {
    "langfuse": {
        "trace": {"id": "t", "timestamp": "x", "sessionId": "s", "scores": test_langfuse.SCORES},
        "observations": test_langfuse.OBSERVATIONS,
    },
    "mlflow": test_mlflow.make_trace(
        test_mlflow.make_span(
            attributes={
                "mlflow.traceRequestId": '"x"',
                "mlflow.spanType": '"CHAT_MODEL"',
                "mlflow.spanInputs": json.dumps({"messages": [{"role": "user", "content": "?"}]}),
                "mlflow.spanOutputs": json.dumps({"choices": [{"message": {"content": "4"}}]}),
                "mlflow.chat.tokenUsage": '{"input_tokens": 1}',
            }
        ),
        trace_metadata={"mlflow.trace.session": "s"},
        tags={"service.name": "shop"},
        assessments=[
            {
                "assessment_id": "a",
                "assessment_name": "n",
                "trace_id": f"tr-{test_mlflow.TRACE}",
                "source": {"source_type": "HUMAN", "source_id": "me"},
                "feedback": {"value": 1.0},
                "create_time": "2026-01-02T03:04:05Z",
            }
        ],
    ),
    "phoenix": [
        test_phoenix.make_span(
            attributes={
                "llm.output_messages": [{"message.role": "assistant", "message.content": "4"}],
                "llm.token_count.prompt": 7.0,
            },
            events=[{"name": "gen_ai.x", "timestamp": "2026-01-02T03:04:05Z", "attributes": {}}],
        )
    ],
}


def list_places(value, path=()):
    """Ways to every value within a document."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from list_places(each, (*path, key))


def put(document, path, value):
    *way, last = path
    for key in way:
        document = document[key]
    document[last] = value


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_value_anywhere_stops_an_export(tmp_path, name):
    """Every span read is used or rejected."""
    random = Random(0)
    path = tmp_path / "export.jsonl"
    places = [place for place in list_places(DOCUMENTS[name]) if place]
    num_spans = 0
    for place in places:
        for value in random.sample(VALUES, 2):
            document = copy.deepcopy(DOCUMENTS[name])
            put(document, place, value)
            path.write_text(json.dumps(document) + "\n")
            try:
                convert(path)
            except SourceError:
                continue  # all of it is damage
            (file,) = find_source_files([path])
            num_spans += sum(len(each.rows) for each in read_span_batches(file))
    assert num_spans > len(places)
