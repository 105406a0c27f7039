"""Tables -> the columns that expressions of a recipe may name."""

from typing import Final

import polars as pl

STATE_COLUMNS: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "turn": "i64",  # 0.. in the order of the trajectory
    "is_first": "bool",
    "task_id": "str",
    "policy_id": "str",
    "environment_name": "str",
    "environment_version": "str",
    "cohort": "str",
    "agent_name": "str",
    "model": "str",
    "input_tokens": "i64",  # of this turn's prompt
    "seconds_so_far": "f64",  # from the trajectory's begin to this turn's
    "tool_calls_so_far": "i64",  # calls asked for in earlier turns
    "errors_so_far": "i64",  # earlier turns that did not end well
    "output_tokens_so_far": "i64",  # null when an earlier turn lacks usage
    "reward_so_far": "f64",  # recorded rewards of earlier turns, 0 where there are none
    "previous_tool_names": "list[str]",  # tools the turn before called; null in the first turn
    "previous_num_tool_calls": "i64",
    "previous_text": "str",
    "previous_outcome": "str",
    "previous_has_error": "bool",
    "previous_reward": "f64",
}
"""What is known before a turn acts, from the trajectory's earlier turns."""

TURN_COLUMNS: Final[dict[str, str]] = {
    **STATE_COLUMNS,
    "is_last": "bool",
    "num_turns": "i64",  # of the trajectory
    "step_kind": "str",
    "seconds": "f64",  # how long the call took
    "finish_reason": "str",
    "outcome": "str",  # ok | error | cut | closed | dropped | cancelled
    "error": "str",
    "has_error": "bool",  # outcome is not ok
    "output_tokens": "i64",
    "num_response_ids": "i64",  # token ids recorded of the answer
    "text": "str",
    "reasoning": "str",
    "tool_names": "list[str]",  # tools this turn calls, in order
    "num_tool_calls": "i64",
    "repeats_previous": "bool",  # the same calls, word for word, as the turn before; not none
    "reward": "f64",  # recorded of this turn; null when none
    "trajectory_reward": "f64",
    "trajectory_end": "str",  # terminated | truncated | abandoned | error | unknown
}
"""All that is known of a turn once its trajectory is over."""

TRAJECTORY_COLUMNS: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "task_id": "str",
    "attempt": "i64",
    "seed": "i64",
    "policy_id": "str",
    "environment_name": "str",
    "environment_version": "str",
    "cohort": "str",
    "conversation_id": "str",
    "agent_name": "str",
    "source": "str",
    "trajectory_end": "str",  # terminated | truncated | abandoned | error | unknown
    "started_ns": "i64",
    "ended_ns": "i64",
    "num_parts": "i64",
    "num_turns": "i64",
    "num_steps": "i64",
    "num_tool_calls": "i64",
    "num_messages": "i64",
    "num_branches": "i64",
    "reward": "f64",
    "input_tokens": "i64",
    "output_tokens": "i64",
    "usable_for": "str",
    "reasons": "list[str]",
    "tool_names": "list[str]",  # tools offered or called
}
"""What curation knows of a trajectory."""

_ID: Final = "trajectory_id"
_OF_TURN: Final = (
    "turn",
    "step_kind",
    "started_ns",
    "ended_ns",
    "model",
    "finish_reason",
    "outcome",
    "error",
    "input_tokens",
    "output_tokens",
    "reasoning",
    "text",
    "tool_calls",
    "response_token_ids",
    "reward",
)


def list_turn_features(turns: pl.DataFrame, trajectories: pl.DataFrame) -> pl.DataFrame:
    """Tables `turns` and `trajectories` -> one row per turn with `TURN_COLUMNS`, in order."""
    identity = ("task_id", "policy_id", "environment_name", "environment_version")
    of_trajectory = trajectories.select(
        _ID,
        *identity,
        "cohort",
        "agent_name",
        "num_turns",
        trajectory_started_ns="started_ns",
        trajectory_reward="reward",
        trajectory_end="end",
    )
    calls = pl.col("tool_calls").fill_null([])
    # A partition's turns have more columns, of the span: what a trajectory is, its root says.
    own = turns.select(_ID, *_OF_TURN).join(of_trajectory, on=_ID, how="left").sort(_ID, "turn")
    own = own.with_columns(
        is_first=pl.col("turn") == 0,
        is_last=pl.col("turn") == pl.col("num_turns") - 1,
        seconds=(pl.col("ended_ns") - pl.col("started_ns")) / 1e9,
        seconds_so_far=(pl.col("started_ns") - pl.col("trajectory_started_ns")) / 1e9,
        has_error=pl.col("outcome").ne("ok").fill_null(value=True),
        tool_names=calls.list.eval(pl.element().struct.field("name")),
        num_tool_calls=calls.list.len().cast(pl.Int64),
        num_response_ids=pl.col("response_token_ids").list.len().cast(pl.Int64),
        called=calls.list.eval(
            pl.concat_str(
                pl.element().struct.field("name").fill_null(""),
                pl.element().struct.field("arguments").fill_null(""),
                separator="\0",
            )
        ).list.join("\1"),
    )
    return own.with_columns(
        repeats_previous=(pl.col("num_tool_calls") > 0)
        & pl.col("called").eq(_before("called")).fill_null(value=False),
        tool_calls_so_far=_sum_before("num_tool_calls"),
        errors_so_far=_sum_before("has_error"),
        output_tokens_so_far=pl.when(
            (_before("output_tokens").is_null() & ~pl.col("is_first")).cum_max().over(_ID).not_()
        ).then(_sum_before("output_tokens")),
        reward_so_far=_sum_before("reward"),
        **{
            f"previous_{name}": _before(name)
            for name in ("tool_names", "num_tool_calls", "text", "outcome", "has_error", "reward")
        },
    ).select(list(TURN_COLUMNS))


def _before(name: str) -> pl.Expr:
    return pl.col(name).shift(1).over(_ID)


def _sum_before(name: str) -> pl.Expr:
    kind = pl.Float64 if name == "reward" else pl.Int64
    return pl.col(name).cast(kind).fill_null(0).cum_sum().shift(1, fill_value=0).over(_ID)
