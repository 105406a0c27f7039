"""What every dialect is converted to: one canonical span, and the columns of its frames.

A canonical span is a set of rows, each for one frame: always one row of `spans`, and by record
kind rows of `calls`, `nodes`, `states` and `rewards`. Frames meet again on the column `row`, the
number of the span within the build. Types are names as in `starpo_trace.schema`.
"""

from dataclasses import dataclass, field
from typing import Any, Final

Columns = dict[str, Any]

RECORDS: Final = frozenset(
    {"trajectory", "part", "agent", "llm", "step", "state", "observation", "reward"}
)
"""`agent` is an agent's span in another library's trace; the rest are ours, see `semconv.RECORD`."""

SPANS: Final[dict[str, str]] = {
    "row": "i64",
    "record": "str",
    "is_ours": "bool",  # written by starpo_trace, so that steps are numbered and roots end
    "trajectory_id": "str",
    "trace_id": "str",
    "span_id": "str",
    "source": "str",
    "scope": "str",
    "start_ns": "i64",
    "end_ns": "i64",
    "step": "i64",  # in the trajectory; as recorded unless its parts used the same numbers
    "recorded_step": "i64",
    "part": "str",  # null: the process where the trajectory began
    "part_base": "i64",
    "part_parent": "str",
    "part_after": "i64",
    "step_kind": "str",
    "step_order": "i64",  # rank by time and history, for spans without a step number
    # orphan_span, skewed_clock, dropped_attributes, content_truncated, redacted,
    # reward_refused; or null
    "flag": "str",
    "agent_name": "str",
    "task_id": "str",
    "attempt": "i64",
    "seed": "i64",
    "policy_id": "str",
    "environment_name": "str",
    "environment_version": "str",
    "cohort": "str",
    "conversation_id": "str",
    "end": "str",
    "num_steps": "i64",
}

CALLS: Final[dict[str, str]] = {
    "row": "i64",
    "model": "str",
    "temperature": "f64",
    "top_p": "f64",
    "top_k": "f64",
    "finish_reason": "str",
    "outcome": "str",
    "error": "str",
    "history_length": "i64",
    "base_node": "str",  # node the recorded messages continue from; null when none is left out
    "input_node": "str",
    "output_node": "str",
    "has_input": "bool",  # the prompt's messages were recorded
    "input_tokens": "i64",
    "output_tokens": "i64",
    "reasoning": "str",
    "text": "str",
    "tool_calls": "list[struct[id:str,name:str,arguments:str]]",
    "tool_definitions": "str",
    "prompt_ids": "list[i32]",  # after the first `prompt_base_length` ones
    "prompt_base_step": "i64",
    "prompt_base_length": "i64",
    "response_ids": "list[i32]",
    "response_logprobs": "list[f64]",
}

NODES: Final[dict[str, str]] = {
    "row": "i64",
    "node_id": "str",
    "parent_id": "str",
    "depth": "i64",
    "role": "str",
    "message": "str",
    "sampled": "bool",
}

STATES: Final[dict[str, str]] = {
    "row": "i64",
    "name": "str",
    "hash": "str",
    "value": "str",
    "base": "str",
    "diff": "str",
}

REWARDS: Final[dict[str, str]] = {
    "row": "i64",
    "reward_id": "str",
    "name": "str",
    "value": "f64",
    "scope": "str",
    "kind": "str",
    "source": "str",
    "min": "f64",
    "max": "f64",
    "step": "i64",
    "recorded_step": "i64",
    "recorded_task_id": "str",
    "signature": "str",  # as recorded
    "signed_ns": "i64",
    "verifier_digest": "str",
    "judge_id": "str",
    "judge_prompt_hash": "str",
    "explanation": "str",
    "time_ns": "i64",
    "target_row": "i64",  # the span it is linked to; null: known by trajectory id and step only
    "recorded_by_us": "bool",
}

FRAMES: Final[dict[str, dict[str, str]]] = {
    "spans": SPANS,
    "calls": CALLS,
    "nodes": NODES,
    "states": STATES,
    "rewards": REWARDS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalSpan:
    """One span's rows of the canonical frames; `row`, `trajectory_id` are added by the tree."""

    record: str
    """One of `RECORDS`."""
    columns: Columns
    """Its row of `spans`."""
    call: Columns | None = None
    """Its row of `calls`, for `llm`."""
    nodes: tuple[Columns, ...] = ()
    """Messages it holds, for `llm` and `observation`."""
    states: tuple[Columns, ...] = ()
    """Its row of `states`, for `state`."""
    rewards: tuple[Columns, ...] = ()
    """Its own row of `rewards`, for `reward`; or evaluation events on a span of another kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a span is not in the dataset."""

    reason: str
    """Stable code, such as `not_an_agent_span`."""
    detail: str = ""
    """What exactly was found."""


@dataclass(slots=True, kw_only=True)
class CanonicalRows:
    """Columns of every frame, gathered span by span."""

    frames: dict[str, dict[str, list[Any]]] = field(
        default_factory=lambda: {
            name: {column: [] for column in columns} for name, columns in FRAMES.items()
        }
    )
    """Frame name -> column name -> values."""

    def add(self, span: CanonicalSpan, row: int, **columns: Any) -> None:
        """Append `span`'s rows under the number `row`; `columns` go into its row of `spans`."""
        self._append("spans", {**span.columns, **columns, "record": span.record}, row)
        if span.call is not None:
            self._append("calls", span.call, row)
        for node in span.nodes:
            self._append("nodes", node, row)
        for state in span.states:
            self._append("states", state, row)
        for reward in span.rewards:
            self._append("rewards", reward, row)

    def _append(self, frame: str, values: Columns, row: int) -> None:
        for column, gathered in self.frames[frame].items():
            gathered.append(row if column == "row" else values.get(column))
