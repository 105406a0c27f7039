"""Canonical frames of a partition -> the dataset's tables.

A partition holds whole trajectories; the function is pure and its result does not depend on the
order of the rows, so partitions may be built anywhere and in any order.
"""

from collections.abc import Mapping
from typing import Final

import polars as pl

from starpo_trace import schema
from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.curation.describe import describe_trajectories
from starpo_trace.convert.placement import place_rewards
from starpo_trace.convert.recipe import NO_RECIPE, Recipe
from starpo_trace.convert.recipe.outcome import reward_trajectories, reward_turns
from starpo_trace.convert.recipe.shaping import shape_turns
from starpo_trace.convert.rewards import Trust, judge_rewards, list_invalid_signatures
from starpo_trace.convert.signatures import check_signatures
from starpo_trace.convert.states import apply_states
from starpo_trace.convert.token_ids import share_prompts
from starpo_trace.convert.verdict import judge_trajectories

_BY_TRAJECTORY = "trajectory_id"
_NEVER: Final = 2**62
_IDENTITY = (
    "task_id",
    "attempt",
    "seed",
    "policy_id",
    "environment_name",
    "environment_version",
    "cohort",
    "conversation_id",
    "user_id",
    "agent_name",
)
_IDENTITY_OF_ANY: Final = frozenset({"conversation_id", "user_id", "agent_name"})
"""What other libraries' spans inside of a run may say of it, where its root does not."""


def build_tables(
    frames: Mapping[str, pl.DataFrame],
    losses: pl.DataFrame,
    *,
    trust: Trust,
    recipe: Recipe = NO_RECIPE,
) -> dict[str, pl.DataFrame]:
    """Canonical frames -> tables by name; `rejected` holds what is found only here.

    Args:
        frames: the frames of `starpo_trace.convert.dialects.canonical.FRAMES`.
        losses: `trajectory_id`, `reason` of rejected spans that belong to a trajectory.
        trust: which rewards count.
        recipe: what the rewards make, and how turns are shaped.
    """
    spans = frames["spans"]
    states, lost_states = apply_states(frames["states"], spans)
    losses = pl.concat(
        [losses, lost_states.select(_BY_TRAJECTORY, pl.col("reason"))], how="vertical"
    )
    spans = spans.join(lost_states.select("row"), on="row", how="anti")
    turns = _build_turns(spans, frames["calls"])
    summary = _summarise_spans(spans)
    placed = place_rewards(frames["rewards"], spans, turns, summary)
    rewards = judge_rewards(check_signatures(placed, trust.keyring), trust, recipe.rewards)
    turns = turns.join(
        reward_turns(rewards, recipe.rewards), on=[_BY_TRAJECTORY, "turn"], how="left"
    )
    messages = _build_messages(frames["nodes"], spans, turns)
    trajectories = _build_trajectories(summary, turns, messages).join(
        reward_trajectories(summary, rewards, recipe.rewards), on=_BY_TRAJECTORY, how="left"
    )
    turns = shape_turns(turns, trajectories, recipe.shaping)
    losses = pl.concat([losses, list_invalid_signatures(rewards)], how="vertical")
    trajectories = judge_trajectories(trajectories, spans, turns, messages, losses)
    features = describe_trajectories(
        trajectories,
        turns,
        messages,
        has_task_sketch=recipe.needs_task_sketch,
        has_content_sketch=recipe.needs_content_sketch,
    )
    trajectories = trajectories.join(features, on=_BY_TRAJECTORY, how="left")
    tables = {
        "trajectories": trajectories,
        "turns": turns,
        "messages": messages,
        "states": states,
        "rewards": rewards,
        "spans": spans.join(turns.select("row", "turn"), on="row", how="left"),
        "rejected": lost_states,
    }
    return {name: _select_columns(table, name) for name, table in tables.items()}


def _select_columns(table: pl.DataFrame, name: str) -> pl.DataFrame:
    columns = polars_schema(schema.TABLES[name])
    missing = [pl.lit(None, dtype=kind).alias(n) for n, kind in columns.items() if n not in table]
    return table.with_columns(missing).select(
        pl.col(column).cast(kind) for column, kind in columns.items()
    )


def _build_turns(spans: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    turns = (
        spans.filter(pl.col("record") == "llm")
        .join(calls, on="row", how="inner", validate="1:1")
        .with_columns(
            # Recorded step numbers decide only where every call of the trajectory has one.
            position=pl.when(pl.col("step").is_not_null().all().over(_BY_TRAJECTORY))
            .then("step")
            .otherwise("step_order"),
            step=pl.coalesce("step", "step_order"),
        )
        .sort(_BY_TRAJECTORY, "position", "start_ns", "history_length", "trace_id", "span_id")
        .with_columns(turn=pl.int_range(pl.len()).over(_BY_TRAJECTORY))
    )
    turns = share_prompts(turns)
    has_ids = pl.col("prompt_token_ids").is_not_null() & pl.col("response_ids").is_not_null()
    is_masked = pl.col("prompt_is_masked") | pl.col("response_ids").list.min().lt(0)
    is_masked = is_masked.fill_null(value=False)
    has_masked_logprobs = pl.col("response_logprobs").list.eval(pl.element().is_null()).list.any()
    # A log-probability is the policy's own only when sampling did not reshape the distribution.
    unshaped = (
        pl.col("temperature").fill_null(1.0).eq(1.0)
        & pl.col("top_p").fill_null(1.0).eq(1.0)
        & pl.col("top_k").fill_null(0.0).le(0.0)
    )
    return turns.with_columns(
        pl.col("response_ids").alias("response_token_ids"),
        started_ns="start_ns",
        ended_ns="end_ns",
        token_provenance=pl.when(~has_ids)
        .then(pl.lit("missing"))
        .when(is_masked)
        .then(pl.lit("redacted"))
        .otherwise(pl.lit("exact")),
        logprob_provenance=pl.when(pl.col("response_logprobs").is_null())
        .then(pl.lit("missing"))
        .when(is_masked | has_masked_logprobs)
        .then(pl.lit("redacted"))
        .when(has_ids & unshaped)
        .then(pl.lit("exact"))
        .otherwise(pl.lit("estimated")),
    )


def _build_messages(nodes: pl.DataFrame, spans: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    seen = nodes.join(spans.select("row", _BY_TRAJECTORY), on="row").join(
        turns.select("row", "turn"), on="row", how="left"
    )
    # What was sampled keeps its own JSON: the echo in the next prompt lacks the reasoning. Rows
    # are numbered by trace and span, so that of equals always the same one is kept.
    messages = (
        seen.with_columns(
            sampled_turn=pl.when("sampled").then("turn"),
            order=pl.when("sampled").then(0).otherwise(2**62)
            + pl.col("turn").fill_null(2**29) * 2**32
            + pl.col("row"),
        )
        .sort("order")
        .group_by(_BY_TRAJECTORY, "node_id", maintain_order=True)
        .agg(
            pl.col("parent_id", "role", "message").first(),
            pl.col("depth").min(),
            pl.col("sampled_turn").min(),
            first_turn=pl.col("turn").min(),
        )
    )
    return _spread_first_turns(messages)


def _spread_first_turns(messages: pl.DataFrame) -> pl.DataFrame:
    """A turn that saw a message saw all before it, though in delta mode it wrote only the rest."""
    keys = [_BY_TRAJECTORY, "node_id"]
    of_children = (
        messages.filter(pl.col("parent_id").is_not_null())
        .group_by(_BY_TRAJECTORY, node_id="parent_id")
        .agg(of_children=pl.col("first_turn").min())
    )
    is_earlier = pl.col("of_children").lt(pl.col("first_turn").fill_null(_NEVER))
    late = messages.join(of_children, on=keys).filter(is_earlier).select(_BY_TRAJECTORY).unique()
    if not late.height:  # nearly always: who wrote a message before the one that follows it
        return messages
    changed = messages.join(late, on=_BY_TRAJECTORY, how="semi").sort(_BY_TRAJECTORY, "depth")
    changed = changed.with_columns(first_turn=_first_turns(changed))
    return pl.concat([messages.join(late, on=_BY_TRAJECTORY, how="anti"), changed])


def _first_turns(messages: pl.DataFrame) -> pl.Series:
    """Messages, sorted by depth -> the first turn that saw each or any that follows it."""
    keys = list(zip(messages[_BY_TRAJECTORY], messages["node_id"], strict=True))
    first = dict(zip(keys, messages["first_turn"], strict=True))
    parents = messages["parent_id"]
    for i in reversed(range(len(keys))):  # deepest first within each trajectory
        trajectory, _ = keys[i]
        parent, turn = (trajectory, parents[i]), first[keys[i]]
        if turn is None or parent not in first:
            continue
        known = first[parent]
        first[parent] = turn if known is None else min(known, turn)
    return pl.Series("first_turn", [first[key] for key in keys], dtype=pl.Int64)


def _build_trajectories(
    summary: pl.DataFrame, turns: pl.DataFrame, messages: pl.DataFrame
) -> pl.DataFrame:
    has_usage = pl.col("input_tokens").is_not_null() & pl.col("output_tokens").is_not_null()
    of_turns = turns.group_by(_BY_TRAJECTORY).agg(
        num_turns=pl.len(),
        num_tool_calls=pl.col("tool_calls").list.len().sum(),
        input_tokens=pl.when(has_usage.all()).then(pl.col("input_tokens").sum()),
        output_tokens=pl.when(has_usage.all()).then(pl.col("output_tokens").sum()),
    )
    of_messages = messages.group_by(_BY_TRAJECTORY).agg(num_messages=pl.len())
    parents = messages.select(_BY_TRAJECTORY, node_id="parent_id")
    leaves = messages.join(parents, on=[_BY_TRAJECTORY, "node_id"], how="anti")
    of_leaves = leaves.group_by(_BY_TRAJECTORY).agg(num_branches=pl.len())
    counts = ["num_turns", "num_tool_calls", "num_messages", "num_branches"]
    return (
        summary.join(of_turns, on=_BY_TRAJECTORY, how="left")
        .join(of_messages, on=_BY_TRAJECTORY, how="left")
        .join(of_leaves, on=_BY_TRAJECTORY, how="left")
        .with_columns(pl.col(counts).fill_null(0))
    )


def _summarise_spans(spans: pl.DataFrame) -> pl.DataFrame:
    is_root = pl.col("record") == "trajectory"
    is_step = pl.col("record").is_in(["llm", "step"])
    # The end of a run is that of its last part, which has none while its root span is missing.
    is_resumed = pl.col("part").str.starts_with("resume-").fill_null(value=False)
    last_base = pl.col("part_base").filter(is_resumed).max().fill_null(0)
    last_root_base = pl.col("part_base").filter(is_root).max().fill_null(0)
    root_end = pl.col("end_ns").filter(is_root).max()
    return (
        spans.filter(pl.col("record") != "reward")
        .sort(is_root.not_(), pl.col("part_base").fill_null(0), "start_ns", "trace_id", "span_id")
        .group_by(_BY_TRAJECTORY, maintain_order=True)
        .agg(
            # Whose run it is, its roots say: others may write what they like on their spans.
            *(
                pl.when(is_root.any() & pl.lit(name not in _IDENTITY_OF_ANY))
                .then(pl.col(name).filter(is_root).drop_nulls().first())
                .otherwise(pl.col(name).drop_nulls().first())
                for name in _IDENTITY
            ),
            pl.col("trace_id").first(),
            pl.col("source").first(),
            end=pl.when(last_base <= last_root_base)
            .then(pl.col("end").drop_nulls().last())
            .fill_null("unknown"),
            started_ns=pl.col("start_ns").min(),
            ended_ns=pl.when(pl.col("is_ours").any())
            .then(root_end)
            .otherwise(pl.col("end_ns").max()),
            num_parts=pl.max_horizontal(pl.col("part").filter(pl.col("is_ours")).n_unique(), 1),
            num_steps=is_step.sum(),
        )
    )
