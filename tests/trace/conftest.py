"""Hand-made spans for the converter's tests, and the spans of a store."""

from importlib.util import find_spec

import pytest

from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.messages import chain_hashes, dump_json, from_openai_chat

if find_spec("hypothesis"):  # the environments of some libraries have none
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
    settings.load_profile("untimed")

TRACE_ID = f"{1:032x}"


class SpanMaker:
    """Makes the span rows of trajectories as `starpo_trace` records them, ids counting from 1."""

    def __init__(self) -> None:
        self.num_spans = 0
        self.known: set[bytes] = set()

    def row(self, attributes, *, name="span", parent=None, span_id=None, **fields) -> SpanRow:
        """One span with these attributes; starts at its number in seconds."""
        self.num_spans += 1
        fields = {
            "source": "store",
            "trace_id": TRACE_ID,
            "scope": semconv.SCOPE_NAME,
            "start_ns": self.num_spans * 1_000_000_000,
            "end_ns": self.num_spans * 1_000_000_000 + 1000,
            **fields,
        }
        return SpanRow(
            name=name,
            span_id=span_id or f"{self.num_spans:016x}",
            parent_id=parent.span_id if parent else None,
            attributes={key: value for key, value in attributes.items() if value is not None},
            **fields,
        )

    def root(self, trajectory="t1", *, end="terminated", num_steps=None, **attributes) -> SpanRow:
        """The root span of a trajectory."""
        return self.row(
            {
                semconv.RECORD: "trajectory",
                semconv.TRAJECTORY_ID: trajectory,
                semconv.TRAJECTORY_END: end,
                semconv.TRAJECTORY_NUM_STEPS: num_steps,
                semconv.AGENT_NAME: "agent",
                **attributes,
            },
            name="invoke_agent agent",
        )

    def call(self, root, step, prompt, answer, *, delta=True, attributes=None, **fields) -> SpanRow:
        """An LLM call: OpenAI prompt and answer messages, written as new messages only."""
        return self.row(
            {
                **self.history(prompt, delta=delta),
                semconv.RECORD: "llm",
                semconv.TRAJECTORY_ID: root.attributes[semconv.TRAJECTORY_ID],
                semconv.OPERATION_NAME: "chat",
                semconv.STEP: step,
                semconv.REQUEST_MODEL: "tiny",
                semconv.OUTPUT_MESSAGES: self.answer(prompt, answer),
                semconv.USAGE_INPUT_TOKENS: 10,
                semconv.USAGE_OUTPUT_TOKENS: 2,
                **(attributes or {}),
            },
            name="chat tiny",
            parent=root,
            **fields,
        )

    def history(self, prompt, *, delta=True) -> dict:
        """Prompt messages -> the attributes that a span holds of them."""
        messages = [from_openai_chat(message) for message in prompt]
        chains = chain_hashes(messages)
        base = max((i + 1 for i, c in enumerate(chains) if delta and c in self.known), default=0)
        self.known.update(chains)
        return {
            semconv.HISTORY_MODE: "delta" if delta else "full",
            semconv.HISTORY_BASE: chains[base - 1].hex() if base else None,
            semconv.HISTORY_BASE_LENGTH: base or None,
            semconv.HISTORY_HASH: chains[-1].hex(),
            semconv.HISTORY_LENGTH: len(messages),
            semconv.INPUT_MESSAGES: dump_json(messages[base:]),
        }

    def answer(self, prompt, answer) -> str | None:
        """The answer as output messages; it becomes part of the known history."""
        if answer is None:
            return None
        messages = [from_openai_chat(message) for message in [*prompt, answer]]
        self.known.add(chain_hashes(messages)[-1])
        return dump_json([messages[-1]])

    def reward(self, target, value, *, links=None, **attributes) -> SpanRow:
        """A trusted trajectory reward linked to `target`; attributes override."""
        return self.row(
            {
                semconv.RECORD: "reward",
                semconv.TRAJECTORY_ID: target.attributes.get(semconv.TRAJECTORY_ID),
                semconv.EVALUATION_NAME: "reward",
                semconv.EVALUATION_VALUE: value,
                semconv.REWARD_ID: "r1",
                semconv.REWARD_SCOPE: "trajectory",
                semconv.REWARD_KIND: "outcome",
                semconv.REWARD_SOURCE: "environment",
                **attributes,
            },
            name="evaluate reward",
            links=((target.trace_id, target.span_id),) if links is None else links,
        )


@pytest.fixture
def spans() -> SpanMaker:
    return SpanMaker()


@pytest.fixture
def read_store():
    """Folder of a store -> the spans in it, as rows."""

    def read(folder) -> list[SpanRow]:
        files = find_source_files([folder])
        return [row for file in files for batch in read_span_batches(file) for row in batch.rows]

    return read
