"""Placed and checked rewards -> which of them count, and why the others do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from starpo_trace.convert.recipe.reward_rules import RewardRule
from starpo_trace.signing import Keyring

TRUST_SOURCES: Final = ("environment", "rule", "user")
"""Reward sources that count by default: not `judge`, which the judged text can talk to."""

SIGNATURE_STATES: Final = ("valid", "invalid", "missing", "unchecked")

_BY_TRAJECTORY = "trajectory_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Which rewards count."""

    sources: tuple[str, ...] = TRUST_SOURCES
    """Reward sources that count."""
    keyring: Keyring | None = None
    """Keys that signatures are checked with."""
    require_signed: bool = False
    """Whether unsigned rewards count for nothing."""


DEFAULT_TRUST: Final = Trust()


def judge_rewards(
    rewards: pl.DataFrame, trust: Trust, rules: Mapping[str, RewardRule] | None = None
) -> pl.DataFrame:
    """Rewards whose signatures are checked -> with `trusted`, `untrusted_because`, `superseded`.

    Args:
        rewards: with the instrumentation scope that recorded each (`scope_name`).
        trust: what counts.
        rules: the recipe's own decisions, by the name of the reward; they come before `trust`.
    """
    rules = rules or {}
    signature = pl.col("signature")
    source = pl.col("source")
    is_recorded = pl.col("recorded_by_us") | signature.eq("valid") | _is_let_in(rules)
    in_range = pl.col("value").ge(pl.col("min")).fill_null(value=True) & pl.col("value").le(
        pl.col("max")
    ).fill_null(value=True)
    of_part = pl.col("scope").ne("trajectory").fill_null(value=True)
    is_beyond = pl.col("step").gt(pl.col("last_step")) | pl.col("step").lt(0)
    faults = {
        "signature": signature.eq("invalid"),
        "not signed": signature.ne("valid") & _must_be_signed(rules, trust),
        "not recorded by starpo_trace": ~is_recorded.fill_null(value=False),
        "source": ~_is_trusted_source(rules, trust),
        "no value": pl.col("value").is_null(),
        "outside of its range": ~in_range,
        "outside of the recipe's range": ~_is_in_range(rules),
        "step": of_part & is_beyond.fill_null(value=False),
        "names no step that a turn could be found by": of_part & pl.col("turn").is_null(),
    }
    words = {
        "signature": pl.col("signature_fault"),
        "source": pl.format("source {} is not trusted", source.fill_null("unknown")),
        "step": pl.format(
            "there is no step {}, the last one is {}", "step", pl.col("last_step").fill_null("?")
        ),
    }
    fault = pl.coalesce(
        pl.when(holds).then(words.get(name, pl.lit(name))) for name, holds in faults.items()
    )
    # Of signed records with one id the one signed last counts, also when an older one is sent
    # again; no unsigned one replaces a signed one, no untrusted one a trusted one.
    is_signed = signature.is_in(["valid", "unchecked"])
    made_ns = pl.when(is_signed).then(pl.coalesce("signed_ns", "time_ns")).otherwise("time_ns")
    return (
        rewards.with_columns(untrusted_because=fault, is_signed=is_signed, made_ns=made_ns)
        .with_columns(trusted=pl.col("untrusted_because").is_null())
        .sort(
            ["trusted", "is_signed", "made_ns", "trace_id", "span_id", "name"],
            descending=True,
        )
        .with_columns(superseded=pl.int_range(pl.len()).over(_BY_TRAJECTORY, "reward_id") > 0)
    )


def _is_let_in(rules: Mapping[str, RewardRule]) -> pl.Expr:
    """Recorded by a scope that the recipe names for rewards of this name."""
    let_in = pl.lit(value=False)
    for name, rule in rules.items():
        for pattern in rule.recorded_by:
            regex = ".*".join(pl.escape_regex(part) for part in pattern.split("*"))
            is_of_scope = pl.col("scope_name").fill_null("").str.contains(f"(?s)^{regex}$")
            let_in = let_in | ((pl.col("name") == name) & is_of_scope)
    return let_in.fill_null(value=False)


def _must_be_signed(rules: Mapping[str, RewardRule], trust: Trust) -> pl.Expr:
    must = pl.lit(value=trust.require_signed)
    for name, rule in rules.items():
        if rule.signed is not None:
            must = pl.when(pl.col("name") == name).then(pl.lit(value=rule.signed)).otherwise(must)
    return must


def _is_trusted_source(rules: Mapping[str, RewardRule], trust: Trust) -> pl.Expr:
    source = pl.col("source")
    trusted = source.is_in(list(trust.sources))
    for name, rule in rules.items():
        if rule.trust is not None:
            own = source.is_in(list(rule.trust))
            trusted = pl.when(pl.col("name") == name).then(own).otherwise(trusted)
    return trusted.fill_null(value=False)


def _is_in_range(rules: Mapping[str, RewardRule]) -> pl.Expr:
    in_range = pl.lit(value=True)
    for name, rule in rules.items():
        if rule.range is not None:
            own = pl.col("value").is_between(*rule.range)
            in_range = pl.when(pl.col("name") == name).then(own).otherwise(in_range)
    return in_range.fill_null(value=True)


def list_invalid_signatures(rewards: pl.DataFrame) -> pl.DataFrame:
    """Rewards -> `trajectory_id`, `reason` of the trajectories that have forged or misplaced ones."""
    return (
        rewards.filter(pl.col("signature") == "invalid")
        .select(_BY_TRAJECTORY, reason=pl.lit("reward_signature_invalid"))
        .unique()
    )
