"""Turn ratios, rewards, clusters and a regression's features -> every estimate and the verdict.

Suffixes: N trajectories, K turns (padded), M turns of all trajectories in order, F ratios of an
estimator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from starpo_train.ope.bootstrap import (
    CONFIDENCE,
    NUM_RESAMPLES,
    UNBOUNDED,
    Interval,
    bootstrap_terms,
    draw_clusters,
    find_bounds,
    subtract_mean,
)
from starpo_train.ope.dr import build_dr_terms
from starpo_train.ope.ess import compute_ess_per_turn, describe_weights
from starpo_train.ope.fqe import FqeResult, Transitions, evaluate_fqe
from starpo_train.ope.importance import (
    EstimatorTerms,
    accumulate_log_ratios,
    build_is_terms,
    build_pdis_terms,
    build_sn_pdis_terms,
    build_weight_terms,
    build_wis_terms,
    compute_returns,
)
from starpo_train.ope.verdict import Basis, Estimate, Provenance, Rules, Verdict, decide_verdict

_IMPORTANCE: dict[str, Callable[..., EstimatorTerms]] = {
    "IS": build_is_terms,
    "WIS": build_wis_terms,
    "PDIS": build_pdis_terms,
    "SN-PDIS": build_sn_pdis_terms,
}
_MISSING = "needs the behaviour policy's log-probabilities, which were not recorded"
_NO_SAMPLES = "needs --samples"
_NO_OVERLAP = "no overlap: the policy gives every recorded run probability 0"
_UNSETTLED = "the regression did not settle"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTurns:
    """What was recorded, turn by turn, float64."""

    rewards_NK: Tensor
    mask_NK: Tensor
    """bool: the trajectory has this turn."""
    cluster_of_N: Tensor
    """Task or user of each trajectory, 0.. without a gap."""
    log_ratios_NK: Tensor | None
    """log pi(a|h) - log mu(a|h) of each turn; None without log mu."""
    provenance: Provenance
    num_left_out: int = 0
    """Rewarded trajectories that are not among these."""
    is_trained_on: bool = False
    """The policy was trained on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The answer."""

    estimates: tuple[Estimate, ...]
    behaviour: Estimate
    """Mean of what was recorded."""
    basis: Basis
    ess_per_turn_K: tuple[float, ...]
    num_clusters: int
    bellman_error: float | None
    """Of FQE, held out; None without it."""
    bellman_error_of_zero: float | None
    verdict: Verdict


def evaluate_logged_turns(
    turns: LoggedTurns,
    transitions: Transitions | None = None,
    *,
    gamma: float = 1.0,
    rules: Rules | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """All estimators on the same trajectories and the same resamples of clusters.

    With equal policies every importance estimate is the behaviour mean, to the last bit.
    """
    num_clusters = int(turns.cluster_of_N.max()) + 1
    counts_BC = draw_clusters(num_clusters, num_resamples=num_resamples, seed=seed)
    returns_N = compute_returns(turns.rewards_NK, turns.mask_NK, gamma=gamma)
    fit = None
    if transitions is not None:
        fit = evaluate_fqe(transitions, turns.cluster_of_N, counts_BC, gamma=gamma)
    estimates = _estimate_by_ratios(turns, fit, returns_N, counts_BC, gamma=gamma)
    estimates.append(_estimate_by_regression(fit, returns_N, turns, counts_BC))
    plain_N1 = returns_N[:, None]
    mean_terms = EstimatorTerms(numerators_NF=plain_N1, denominators_NF=torch.ones_like(plain_N1))
    behaviour = _estimate("behaviour", mean_terms, turns, counts_BC)
    weights, ess_K, mean_weight = None, (), None
    if turns.log_ratios_NK is not None:
        log_weights_NK = accumulate_log_ratios(turns.log_ratios_NK, turns.mask_NK)
        weights = describe_weights(log_weights_NK[:, -1])
        weight_terms = build_weight_terms(turns.log_ratios_NK, turns.mask_NK)
        mean_weight = _estimate("mean weight", weight_terms, turns, counts_BC)
        ess_K = tuple(compute_ess_per_turn(log_weights_NK).tolist())
    basis = Basis(
        num_trajectories=len(returns_N),
        num_left_out=turns.num_left_out,
        provenance=turns.provenance,
        is_trained_on=turns.is_trained_on,
        weights=weights,
        mean_weight=mean_weight,
    )
    return Evaluation(
        estimates=tuple(estimates),
        behaviour=behaviour,
        basis=basis,
        ess_per_turn_K=ess_K,
        num_clusters=num_clusters,
        bellman_error=None if fit is None else fit.bellman_error,
        bellman_error_of_zero=None if fit is None else fit.bellman_error_of_zero,
        verdict=decide_verdict(
            estimates, basis, behaviour_mean=behaviour.value or 0.0, rules=rules
        ),
    )


def _estimate_by_ratios(
    turns: LoggedTurns,
    fit: FqeResult | None,
    returns_N: Tensor,
    counts_BC: Tensor,
    *,
    gamma: float,
) -> list[Estimate]:
    """IS, WIS, PDIS, SN-PDIS and DR, or why not."""
    if turns.log_ratios_NK is None:
        return [Estimate(name=name, value=None, reason=_MISSING) for name in (*_IMPORTANCE, "DR")]
    terms_of = {
        name: build(turns.log_ratios_NK, turns.rewards_NK, turns.mask_NK, gamma=gamma)
        for name, build in _IMPORTANCE.items()
    }
    refused = _NO_SAMPLES
    if fit is not None and bool(fit.q_values_M.isfinite().all()):
        terms_of["DR"] = build_dr_terms(
            turns.log_ratios_NK,
            turns.rewards_NK,
            turns.mask_NK,
            q_values_NK=spread_turns(fit.q_values_M, turns.mask_NK),
            values_NK=spread_turns(fit.state_values_M, turns.mask_NK),
            gamma=gamma,
        )
    elif fit is not None:
        refused = _UNSETTLED
    estimates = [
        _estimate(name, terms, turns, counts_BC, returns_N=returns_N)
        for name, terms in terms_of.items()
    ]
    if "DR" not in terms_of:
        estimates.append(Estimate(name="DR", value=None, reason=refused))
    return estimates


def _estimate(
    name: str,
    terms: EstimatorTerms,
    turns: LoggedTurns,
    counts_BC: Tensor,
    *,
    returns_N: Tensor | None = None,
) -> Estimate:
    """One estimator's answer; with `returns_N` also how far it is from their mean."""
    value = terms.compute_value()
    if math.isnan(value):
        return Estimate(name=name, value=None, reason=_NO_OVERLAP)
    change = None
    if returns_N is not None:
        change = bootstrap_terms(subtract_mean(terms, returns_N), turns.cluster_of_N, counts_BC)
    return Estimate(
        name=name,
        value=value,
        interval=bootstrap_terms(terms, turns.cluster_of_N, counts_BC),
        change=change,
        is_estimated=turns.provenance == "estimated",
    )


def _estimate_by_regression(
    fit: FqeResult | None, returns_N: Tensor, turns: LoggedTurns, counts_BC: Tensor
) -> Estimate:
    """FQE; its interval is of percentiles, as each resample is a fit of its own."""
    if fit is None:
        return Estimate(name="FQE", value=None, reason=_NO_SAMPLES)
    if math.isnan(fit.value):
        return Estimate(name="FQE", value=None, reason=_UNSETTLED)
    interval = change = UNBOUNDED
    if counts_BC.shape[1] > 1:
        num_clusters = counts_BC.shape[1]
        sums_C = returns_N.new_zeros(num_clusters).index_add(0, turns.cluster_of_N, returns_N)
        sizes_C = torch.bincount(turns.cluster_of_N, minlength=num_clusters).to(returns_N.dtype)
        means_B = (counts_BC @ sums_C) / (counts_BC @ sizes_C)
        interval = _make_interval(fit.values_B)
        change = _make_interval(fit.values_B - means_B)
    return Estimate(name="FQE", value=fit.value, interval=interval, change=change)


def spread_turns(values_M: Tensor, mask_NK: Tensor) -> Tensor:
    """Values of turns in order -> [N, K], 0 where a trajectory has no such turn."""
    values_NK = values_M.new_zeros(mask_NK.shape)
    values_NK[mask_NK] = values_M
    return values_NK


def _make_interval(values_B: Tensor) -> Interval:
    low, high = find_bounds(values_B, confidence=CONFIDENCE)
    return Interval(low=low, high=high)
