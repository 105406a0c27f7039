"""Rewards as recorded -> with the trajectory, the task, the step and the turn that they judge."""

import polars as pl

_BY_TRAJECTORY = "trajectory_id"


def place_rewards(
    rewards: pl.DataFrame, spans: pl.DataFrame, turns: pl.DataFrame, summary: pl.DataFrame
) -> pl.DataFrame:
    """Rewards -> with their trajectory, its task, and the step and turn that they judge."""
    own = spans.select(
        "row", _BY_TRAJECTORY, "trace_id", "span_id", pl.col("scope").alias("scope_name")
    )
    targets = spans.select(
        target_row="row",
        target_step=pl.coalesce("step", "step_order"),
        target_is_step=pl.col("record").is_in(["llm", "step"]),
    )
    target_turns = turns.select(target_row="row", target_turn="turn")
    of_trajectory = pl.col("scope") == "trajectory"
    # A signature covers the step and not the link, so the link moves no signed reward.
    is_signed = pl.col("signature").is_not_null()
    is_elsewhere = pl.col("target_step").ne_missing(pl.col("named_step"))
    is_moved = is_signed & ~of_trajectory & pl.col("target_is_step") & is_elsewhere
    placed = (
        rewards.rename({"step": "named_step"})
        .join(own, on="row", how="inner")
        .join(targets, on="target_row", how="left")
        .join(target_turns, on="target_row", how="left")
        .join(summary.select(_BY_TRAJECTORY, "task_id"), on=_BY_TRAJECTORY, how="left")
        .with_columns(
            step=pl.when(~of_trajectory).then(
                pl.coalesce("named_step", pl.when(~is_signed).then("target_step"))
            ),
            target_turn=pl.when(~is_signed | (pl.col("target_is_step") & ~is_moved)).then(
                "target_turn"
            ),
            is_moved=is_moved.fill_null(value=False),
            reward_id=pl.coalesce(
                "reward_id", pl.format("{}:{}:{}", "trace_id", "span_id", "name")
            ),
        )
    )
    last_steps = (
        spans.group_by(_BY_TRAJECTORY)
        .agg(last_step=pl.coalesce("step", "step_order").max())
        .filter(pl.col("last_step").is_not_null())
    )
    # A reward of a tool step belongs to the turn that asked for the tool: the last one before it.
    steps = turns.select(_BY_TRAJECTORY, "step", "turn").sort("step")
    return (
        placed.join(last_steps, on=_BY_TRAJECTORY, how="left")
        .sort("step", nulls_last=True)
        .join_asof(steps, on="step", by=_BY_TRAJECTORY, strategy="backward", check_sortedness=False)
        .with_columns(turn=pl.when(~of_trajectory).then(pl.coalesce("target_turn", "turn")))
    )
