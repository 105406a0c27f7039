"""Spans that agents of several frameworks wrote: what a reader finds in the files is in the dataset.

Counts and hashes were read off the files, not taken from the converter.
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path

import pytest

from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.otlp import SpanRow

NAME = "../shared/data/strands-evals-live-spans"
FOLDER = Path(__file__).parents[3] / "shared" / "data" / "strands-evals-live-spans"
FIXTURES = FOLDER / "mappers" / "fixtures"


def hash_id(text, length):
    return hashlib.blake2b(str(text).encode(), digest_size=length // 2).hexdigest()


def hash_arguments(text):
    arguments = json.dumps(json.loads(text), sort_keys=True)
    return hashlib.sha256(arguments.encode()).hexdigest()[:12]


def read_time(value):
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp() * 1e9
    return int(value)


def read_file(name):
    """The file's own form of a span -> rows; ids that are names become numbers."""
    if not FIXTURES.is_dir():
        pytest.skip(f"{NAME} is not there")
    rows = []
    for span in json.loads((FIXTURES / name).read_text()):
        parent, scope = span.get("parent_span_id"), span["scope"]
        rows.append(
            SpanRow(
                source=name,
                trace_id=hash_id(span["trace_id"], 32),
                span_id=hash_id(span["span_id"], 16),
                parent_id=None if not parent else hash_id(parent, 16),
                name=span["name"],
                scope=scope if isinstance(scope, str) else scope["name"],
                start_ns=read_time(span["start_time"]),
                end_ns=read_time(span["end_time"]),
                attributes=span["attributes"],
                events=tuple(
                    (event["event_name"], event["timestamp"], event["attributes"])
                    for event in span.get("span_events", ())
                ),
            )
        )
    return rows


CASES = {
    # file: trajectories, turns, tokens in and out, calls with their arguments' hash, rejected
    "openai_agents_genai_live_spans.json": (
        *(1, 8, 1870, 253),
        [
            ("ask_math_specialist", "67dfea5b44e0"),
            ("ask_research_specialist", "79172c0b5aa1"),
            ("lookup_stock_price", "ed4a56ba9fe1"),
            ("multiply_numbers", "92f76cbc2663"),
            ("multiply_numbers", "ca5b51590850"),
        ],
        {},
    ),
    "pydantic_ai_live_spans.json": (1, 2, 1251, 78, [("get_weather", "fb21a0163c8e")], {}),
    "otel_genai_convention_spans.json": (
        *(1, 2, 200, 60),
        [("get_weather", "c48e39ebfd34"), ("get_weather", "fb35d25b7ed9")],
        {},
    ),
    "openinference_live_spans.json": (
        *(1, 2, None, None),
        [("finish", "4330ea73f511"), ("get_weather", "5dbfffa36cab")],
        {},
    ),
    # Its two calls are in two spans each; the root span says nothing.
    "adk_live_spans.json": (
        *(1, 2, 379, 84),
        [("calculator", "42ae71c0c863")],
        {"duplicate_llm_call": 2, "not_an_agent_span": 1},
    ),
    # Agents and tools of an SDK that records no call of the model.
    "claude_live_spans.json": (0, 0, None, None, [], {"no_llm_call": 10}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_in_the_file_is_in_the_dataset(name):
    """Runs, calls, usage, actions; every span is used or rejected by name."""
    num_trajectories, num_turns, num_in, num_out, actions, rejected = CASES[name]
    rows = read_file(name)
    tables = convert_rows(rows)
    trajectories, turns = tables["trajectories"], tables["turns"]
    assert (trajectories.height, turns.height) == (num_trajectories, num_turns)
    assert trajectories["input_tokens"].to_list() == [num_in] * num_trajectories
    assert trajectories["output_tokens"].to_list() == [num_out] * num_trajectories
    found = [
        (call["name"], hash_arguments(call["arguments"]))
        for calls in turns["tool_calls"].to_list()
        for call in calls
    ]
    assert sorted(found) == actions
    reasons = tables["rejected"]["reason"].to_list()
    assert {reason: reasons.count(reason) for reason in reasons} == rejected
    num_steps = trajectories["num_steps"].sum()
    assert num_steps <= len(rows) - len(reasons)
