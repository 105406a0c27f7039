"""What every dialect is converted to: one canonical span, and the columns of its frames.

A canonical span is a set of rows, each for one frame: always one row of `spans`, and by record
kind rows of `calls`, `nodes`, `states` and `rewards`. Frames meet again on the column `row`, the
number of the span within its chunk. Types are names as in `starpo_trace.schema`.
"""

from typing import Any, Final

import msgspec

Columns = dict[str, Any]

RECORDS: Final = frozenset(
    {"trajectory", "part", "agent", "llm", "step", "state", "observation", "reward"}
)
"""`agent` is an agent's span in another library's trace; the rest are ours, see `semconv.RECORD`."""

SPANS: Final[dict[str, str]] = {
    "row": "i64",
    "trace_id": "str",
    "span_id": "str",
    "parent_id": "str",
    "name": "str",
    "source": "str",
    "scope": "str",
    "start_ns": "i64",
    "end_ns": "i64",
    # skewed_clock, dropped_attributes, content_truncated, redacted, reward_refused; or null
    "flag": "str",
    "num_links": "i64",
    "link_trace_id": "str",
    "link_span_id": "str",
    "record": "str",  # null: rejected
    "reason": "str",
    "detail": "str",
    "is_ours": "bool",  # written by starpo_trace, so that steps are numbered and roots end
    "trajectory_id": "str",  # as the span itself says
    "conversation_id": "str",
    "step": "i64",  # as recorded
    "step_kind": "str",
    "has_input": "bool",  # a call whose prompt was recorded
    "tool_name": "str",  # of a step
    "tool_call_id": "str",
}

RUNS: Final[dict[str, str]] = {  # of spans that say any of it
    "row": "i64",
    "part": "str",  # null: the process where the trajectory began
    "part_base": "i64",
    "part_parent": "str",
    "part_after": "i64",
    "user_id": "str",
    "agent_name": "str",
    "task_id": "str",
    "attempt": "i64",
    "seed": "i64",
    "policy_id": "str",
    "environment_name": "str",
    "environment_version": "str",
    "cohort": "str",
    "end": "str",
    "num_steps": "i64",
}

CALLS: Final[dict[str, str]] = {
    "row": "i64",
    "response_id": "str",  # by which another request may fetch the answer, and others name it
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
    "recorded_by_us": "bool",
}

DEFERRED: Final[dict[str, str]] = {  # spans whose meaning others may change, as they were read
    "row": "i64",
    "span": "bytes",
}

FRAMES: Final[dict[str, dict[str, str]]] = {
    "spans": SPANS,
    "runs": RUNS,
    "calls": CALLS,
    "nodes": NODES,
    "states": STATES,
    "rewards": REWARDS,
    "deferred": DEFERRED,
}


class CanonicalSpan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One span's rows of the canonical frames; `row`, `trajectory_id` are added by the tree."""

    record: str
    """One of `RECORDS`."""
    columns: Columns
    """What it says of itself: columns of `spans` and `runs`, where they are not null."""
    call: Columns | None = None
    """Its row of `calls`, for `llm`."""
    nodes: tuple[Columns, ...] = ()
    """Messages it holds, for `llm` and `observation`."""
    states: tuple[Columns, ...] = ()
    """Its row of `states`, for `state`."""
    rewards: tuple[Columns, ...] = ()
    """Its own row of `rewards`, for `reward`; or evaluation events on a span of another kind."""


class Rejection(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a span is not in the dataset."""

    reason: str
    """Stable code, such as `not_an_agent_span`."""
    detail: str = ""
    """What exactly was found."""
