"""Trajectory rows and what was found in them -> `usable_for` and its reasons.

Judged anew from the data, whatever the recording process thought: `rl` needs a trajectory that
ended, with every step, exact token ids and log-probabilities, and a trusted reward; `sft` needs
content; everything that was found missing is a reason.
"""

from typing import Final

import polars as pl

NOT_EVEN_SFT: Final = (
    "no_llm_call",
    "no_content",
    "missing_history",
    "content_truncated",
    "conflicting_copies",
    "content_order_lost",
)
"""Reasons that leave nothing to learn from."""
INFORMATION: Final = (
    "call_error",
    "skewed_clock",
    "open_part",
    "reward_signature_invalid",
    "conflicting_root",
)
"""Reasons that take nothing away. Every other reason means: not for RL."""
NOT_RL: Final = (
    "unended",
    "missing_turn",
    "duplicate_step",
    "token_ids_missing",
    "logprob_missing",
    "logprob_estimated",
    "stream_incomplete",
    "partial_content",
    "no_reward",
    "dropped_attributes",
    "orphan_span",
    "reward_refused",
    "redacted",
    "conflicting_roots",
    "malformed_attributes",
    "history_mismatch",
    "cycle",
    "content_ref_missing",
    "content_ref_outside",
    "content_ref_unreadable",
)

_BY_TRAJECTORY = "trajectory_id"


def judge_trajectories(
    trajectories: pl.DataFrame,
    spans: pl.DataFrame,
    turns: pl.DataFrame,
    messages: pl.DataFrame,
    losses: pl.DataFrame,
) -> pl.DataFrame:
    """Trajectories -> with `usable_for` (rl | sft | none) and `reasons` (sorted)."""
    found = [
        _reasons_of_trajectories(trajectories),
        _reasons_of_steps(spans),
        _reasons_of_roots(spans),
        _reasons_of_turns(turns),
        _reasons_of_history(turns, messages),
        spans.filter(pl.col("flag").is_not_null())
        .select(_BY_TRAJECTORY, reason=pl.col("flag").str.split(","))
        .explode("reason"),
        losses.select(_BY_TRAJECTORY, "reason"),
    ]
    reasons = (
        pl.concat(found, how="vertical")
        .unique()
        .sort("reason")
        .group_by(_BY_TRAJECTORY, maintain_order=True)
        .agg(reasons="reason")
    )
    judged = trajectories.join(reasons, on=_BY_TRAJECTORY, how="left").with_columns(
        pl.col("reasons").fill_null([])
    )
    denies_sft = pl.col("reasons").list.set_intersection(list(NOT_EVEN_SFT)).list.len() > 0
    denies_rl = pl.col("reasons").list.set_difference(list(INFORMATION)).list.len() > 0
    return judged.with_columns(
        usable_for=pl.when(denies_sft)
        .then(pl.lit("none"))
        .when(denies_rl)
        .then(pl.lit("sft"))
        .otherwise(pl.lit("rl"))
    )


def _reason_rows(frame: pl.DataFrame, reasons: dict[str, pl.Expr]) -> pl.DataFrame:
    """One row per trajectory and reason whose expression holds."""
    return (
        frame.select(
            _BY_TRAJECTORY,
            reason=pl.concat_list(
                pl.when(holds).then(pl.lit(name)) for name, holds in reasons.items()
            ),
        )
        .explode("reason")
        .drop_nulls("reason")
    )


def _reasons_of_trajectories(trajectories: pl.DataFrame) -> pl.DataFrame:
    return _reason_rows(
        trajectories,
        {
            "no_llm_call": pl.col("num_turns") == 0,
            "unended": pl.col("end") == "unknown",
            "no_reward": pl.col("reward").is_null(),
        },
    )


def _reasons_of_steps(spans: pl.DataFrame) -> pl.DataFrame:
    """Each part has its own numbers, without holes from where it branched off.

    A run and what resumed it make one such row of numbers. A part that another process recorded
    says at its end how many there are; until then a loss at its end cannot be noticed.
    """
    part = pl.col("part")
    is_step = pl.col("record").is_in(["llm", "step"]) & pl.col("recorded_step").is_not_null()
    steps = pl.col("recorded_step").filter(is_step)
    is_branch = part.str.contains("^(remote|fork)-").fill_null(value=False)
    counted = (
        spans.with_columns(line=pl.when(is_branch).then(part), is_branch=is_branch)
        .group_by(_BY_TRAJECTORY, "line")
        .agg(
            num_found=steps.n_unique(),
            num_rows=pl.struct("part", "recorded_step").filter(is_step).len(),
            num_different=pl.struct("part", "recorded_step").filter(is_step).n_unique(),
            num_expected=pl.max_horizontal(pl.col("num_steps").max(), steps.max() + 1).fill_null(0)
            - pl.col("part_base").filter("is_branch").max().fill_null(0),
            is_open=(pl.col("is_branch") & is_step).any() & ~(pl.col("record") == "part").any(),
        )
    )
    return _reason_rows(
        counted,
        {
            "missing_turn": pl.col("num_found") < pl.col("num_expected"),
            "duplicate_step": pl.col("num_rows") > pl.col("num_different"),
            "open_part": pl.col("is_open"),
        },
    )


def _reasons_of_roots(spans: pl.DataFrame) -> pl.DataFrame:
    """One root, beside those of what resumed the run."""
    roots = spans.filter((pl.col("record") == "trajectory") & pl.col("part").is_null())
    counted = roots.group_by(_BY_TRAJECTORY).agg(
        num_roots=pl.struct("trace_id", "span_id").n_unique()
    )
    return _reason_rows(counted, {"conflicting_roots": pl.col("num_roots") > 1})


def _reasons_of_turns(turns: pl.DataFrame) -> pl.DataFrame:
    failed = pl.col("outcome") == "error"
    answered = pl.col("output_node").is_not_null()
    acted = ~failed | answered  # a failed call without an answer is no action of the policy
    of_turns = turns.with_columns(acted=acted)
    return _reason_rows(
        of_turns,
        {
            "no_content": ~pl.col("has_input")
            | (~answered & pl.col("outcome").eq("ok"))
            | ~answered.any().over(_BY_TRAJECTORY),
            "call_error": failed,
            "stream_incomplete": pl.col("outcome").is_in(["cut", "closed", "dropped", "cancelled"])
            # An answer that said why it ends is whole; the program may have failed to parse it.
            | (failed & answered & pl.col("finish_reason").is_null()),
            "token_ids_missing": acted & (pl.col("token_provenance") == "missing"),
            "redacted": acted
            & (
                (pl.col("token_provenance") == "redacted")
                | (pl.col("logprob_provenance") == "redacted")
            ),
            "logprob_missing": acted & (pl.col("logprob_provenance") == "missing"),
            "logprob_estimated": acted & (pl.col("logprob_provenance") == "estimated"),
        },
    )


def _reasons_of_history(turns: pl.DataFrame, messages: pl.DataFrame) -> pl.DataFrame:
    needed = pl.concat(
        [
            messages.select(_BY_TRAJECTORY, node_id="parent_id"),
            turns.select(_BY_TRAJECTORY, node_id="input_node"),
        ]
    ).drop_nulls("node_id")
    return (
        needed.join(messages, on=[_BY_TRAJECTORY, "node_id"], how="anti")
        .select(_BY_TRAJECTORY, reason=pl.lit("missing_history"))
        .unique()
    )
