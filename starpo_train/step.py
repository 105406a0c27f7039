"""Trajectories of one step -> packs, and the gradients of their loss.

A loss on tokens is a sum over packs. A loss on trajectories is a function of their log-probabilities,
which may lie in several packs: those are summed up first, without gradient; the loss's slope at
each then goes to every token of its trajectory.

Suffixes: A trained tokens of a pack, N trajectories of the step, R rows of a pack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import RunConfig
from starpo_train.losses.aggregation import compute_row_coefficients
from starpo_train.losses.ratios import compute_log_ratios, measure_ratios
from starpo_train.memory import explain_out_of_memory
from starpo_train.objective import Objective, TokenTerms, TrajectoryTerms
from starpo_train.pack import TokenBatch, pack_all
from starpo_train.policy import Policy, PolicyScores
from starpo_train.proximal import Proximal
from starpo_train.ranks import ALONE, Ranks
from starpo_train.trainingdata import TrainingData

OF_TRAJECTORIES: Final = "trajectory."
"""Begins the names of what a loss on trajectories found of the step as a whole."""
_NAMES: Final = {"clipped": "clip_fraction", "advantage_abs": "advantage_mean_abs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPack:
    """One pack of a step with what its loss needs."""

    batch: TokenBatch
    trajectory_of_A: Tensor
    """Index in N of each trained token."""
    coefficients_A: Tensor
    """Factor of each token's loss; over all packs of the step they add up to 1."""
    advantages_A: Tensor | None = None
    """None for filtered BC and losses on trajectories."""
    proximal_A: Tensor | None = None
    """Log-probabilities of the policy at the epoch's start, in the place of mu's."""
    corrections_A: Tensor | None = None
    """Weights for what that policy has moved away from mu."""
    reference_A: Tensor | None = None
    """Log-probabilities of the model that the run began with."""
    origin_A: Tensor | None = None
    """What the policy's drift is measured from: mu's log-probabilities, nan where there are none."""
    slopes_A: Tensor | None = None
    """d loss / d log-probability, of a loss on trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Some trajectories, as their loss needs them."""

    packs: list[StepPack]
    """Those of this rank."""
    terms: TrajectoryTerms | None = None
    """For a loss on trajectories."""
    mismatched: list[tuple[TokenBatch, Tensor]] | None = None
    """KTO: packs of answers to other prompts, and their reference log-probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """What a step's passes have found, over every rank; their gradients are on the weights."""

    sums: dict[str, float]
    """Over the step's trained tokens, as the losses name them, and how many there were."""
    suspect_rows: list[int]
    """Rows of this rank's packs whose loss is no number."""


def build_step(
    data: TrainingData,
    config: RunConfig,
    trajectories: Sequence[int],
    *,
    shared_up_to: int = 0,
    tokens_per_pack: int | None = None,
    ranks: Ranks = ALONE,
    proximal: Proximal | None = None,
) -> Step:
    """Rows of some trajectories -> packs that share the step's denominators; those of this rank."""
    rows = [r for n in trajectories for r in data.rows_of_N[n]]
    place_of = {r: i for i, n in enumerate(trajectories) for r in data.rows_of_N[n]}
    coefficients_R = compute_row_coefficients(
        torch.tensor([data.rows[r].num_actions for r in rows]),
        torch.tensor([data.rows[r].weight for r in rows]),
        torch.tensor([place_of[r] for r in rows]),
        mode=config.algorithm.aggregation,
        horizon=data.horizon,
    )
    coefficient_of = dict(zip(rows, coefficients_R.tolist(), strict=True))
    packing = {
        "tokens_per_pack": tokens_per_pack or config.train.tokens_per_pack,
        "shared_up_to": shared_up_to,
        "ranks": ranks,
    }
    packs = []
    for chosen, batch in pack_all(data.rows, rows, **packing):
        place_of_R = torch.tensor([place_of[r] for r in chosen], dtype=torch.long)
        factor_of_R = torch.tensor([coefficient_of[r] for r in chosen])
        packs.append(
            StepPack(
                batch=batch,
                trajectory_of_A=place_of_R[batch.row_of_A],
                coefficients_A=factor_of_R[batch.row_of_A] * batch.weights_A,
                advantages_A=_gather(data.advantages_R, chosen),
                proximal_A=None if proximal is None else _gather(proximal.logprobs_R, chosen),
                corrections_A=None if proximal is None else _gather(proximal.weights_R, chosen),
                reference_A=_gather(data.reference_R, chosen),
                origin_A=_gather(data.origins, chosen),
            )
        )
    if not data.objective.is_on_trajectories:
        return Step(packs=packs)
    mismatched = None
    if data.mismatched:
        mismatched = [
            (batch, reference_A)
            for chosen, batch in pack_all(data.mismatched, trajectories, **packing)
            if (reference_A := _gather(data.mismatched_reference_R, chosen)) is not None
        ]
    terms = data.describe_trajectories(trajectories, coefficient_of, proximal)
    return Step(packs=packs, terms=terms, mismatched=mismatched)


def _gather(values_R: Sequence[np.ndarray] | None, rows: Sequence[int]) -> Tensor | None:
    if not values_R:
        return None
    parts = [values_R[r] for r in rows] or [np.empty(0, dtype=np.float32)]
    return torch.from_numpy(np.concatenate(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLoss:
    """What a pack gives to the step."""

    loss: Tensor
    """Scalar whose gradient is the pack's share of the step's."""
    share: Tensor
    """Detached: the pack's share of the step's loss, as far as it is a sum over tokens."""
    sums: dict[str, Tensor]
    """Sums over tokens, as the loss names them."""
    scores: PolicyScores
    """At the trained tokens."""


def compute_pack_loss(
    policy: Policy, pack: StepPack, objective: Objective, *, scores: PolicyScores | None = None
) -> PackLoss:
    """A pack's share of the step's loss; `scores` with gradient, if the pack has been scored.

    Of a loss on trajectories, what has its gradient: slope * log pi, or what clones the pack before
    the slopes are known.
    """
    scores = scores or policy.score_actions(pack.batch)
    terms = _terms_on(policy.device, pack)
    extras = objective.compute_extras(scores.logprobs_A, scores.entropies_A, terms)
    if objective.is_on_trajectories:
        slopes_A = -pack.coefficients_A if pack.slopes_A is None else pack.slopes_A
        loss = (slopes_A.to(policy.device) * scores.logprobs_A).sum() + extras
        return PackLoss(loss=loss, share=extras.detach(), sums={}, scores=scores)
    output = objective.compute_on_tokens(scores.logprobs_A, terms)
    loss = output.loss + extras
    return PackLoss(loss=loss, share=loss.detach(), sums=output.sums, scores=scores)


def _terms_on(device: torch.device, pack: StepPack) -> TokenTerms:
    def move(values_A: Tensor | None) -> Tensor | None:
        return None if values_A is None else values_A.to(device)

    recorded_A = pack.batch.behaviour_logprobs_A

    return TokenTerms(
        coefficients_A=pack.coefficients_A.to(device),
        advantages_A=move(pack.advantages_A),
        behaviour_A=move(recorded_A if pack.proximal_A is None else pack.proximal_A),
        corrections_A=move(pack.corrections_A),
        reference_A=move(pack.reference_A),
    )


def accumulate_gradients(
    policy: Policy, step: Step, objective: Objective, name_row: Callable[[int], str]
) -> StepSums:
    """Forward and backward of every pack of this rank; `name_row` gives a row's trajectory.

    Raises:
        OutOfMemoryError: a pack does not fit into memory.
    """
    totals: dict[str, Tensor] = {}
    suspect_rows: list[int] = []

    def add(sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            totals[name] = totals[name] + value if name in totals else value

    packs, scores = step.packs, None
    if step.terms is not None:
        whole, packs, scores = _find_slopes(policy, step, step.terms, objective, name_row)
        share = 1.0 if policy.ranks.is_first else 0.0  # every rank has found the same
        add({name: share * value for name, value in whole.items()})
    for pack in packs:
        with explain_out_of_memory(pack.batch, name_row):
            found = compute_pack_loss(policy, pack, objective, scores=scores)
            scores = None
            if not torch.isfinite(found.loss):
                suspect_rows += pack.batch.rows_R
            found.loss.backward()
        add(found.sums | _measure(pack, found.scores) | {"loss": found.share.double()})
    counts = {
        "num_tokens": sum(pack.batch.num_row_tokens for pack in packs),
        "num_computed": sum(pack.batch.num_tokens for pack in packs),
        "num_actions": sum(pack.batch.num_actions for pack in packs),
    }
    sums = counts | {name: float(value) for name, value in totals.items()}
    return StepSums(sums=policy.ranks.sum(sums), suspect_rows=suspect_rows)


def _find_slopes(
    policy: Policy,
    step: Step,
    terms: TrajectoryTerms,
    objective: Objective,
    name_row: Callable[[int], str],
) -> tuple[dict[str, Tensor], list[StepPack], PolicyScores | None]:
    """The step's loss and what goes with it; the packs with its slope at each token; and, where one
    process has all, the first one's scores, which need no second pass.
    """  # noqa: D205
    divergence = _measure_divergence(policy, step.mismatched) if step.mismatched else 0.0
    logprobs_N, scores = _sum_up(policy, step.packs, len(terms.outcomes_N), name_row)
    logprobs_N.requires_grad_()
    output = objective.compute_on_trajectories(logprobs_N, terms, divergence=divergence)
    (slopes_N,) = torch.autograd.grad(output.loss, logprobs_N)
    packs = [
        replace(pack, slopes_A=slopes_N[pack.trajectory_of_A].float() * pack.batch.weights_A)
        for pack in reversed(step.packs)
    ]
    sums = {f"{OF_TRAJECTORIES}{name}": value for name, value in output.sums.items()}
    return sums | {"loss": output.loss.detach().double()}, packs, scores


def _sum_up(
    policy: Policy,
    packs: Sequence[StepPack],
    num_trajectories: int,
    name_row: Callable[[int], str],
) -> tuple[Tensor, PolicyScores | None]:
    """Weighted log-probabilities of each trajectory, float64 [N], and the last pack's scores.

    Of one process, those have their gradient; ranks pass forward and backward pack by pack.
    """
    sums_N = torch.zeros(num_trajectories, dtype=torch.float64)
    scores = None
    for i, pack in enumerate(packs):
        is_kept = i == len(packs) - 1 and policy.ranks.size == 1
        with explain_out_of_memory(pack.batch, name_row), torch.set_grad_enabled(is_kept):
            found = policy.score_actions(pack.batch)
        values_A = found.logprobs_A.detach().double().cpu()
        sums_N.index_add_(0, pack.trajectory_of_A, values_A * pack.batch.weights_A)
        scores = found if is_kept else None
    return policy.ranks.sum_tensor(sums_N), scores


@torch.no_grad()
def _measure_divergence(policy: Policy, parts: Sequence[tuple[TokenBatch, Tensor]]) -> float:
    """Mean log-ratio to the reference of answers to other prompts, not below 0: KTO's z."""
    total, count = 0.0, 0
    for batch, reference_A in parts:
        with explain_out_of_memory(batch, lambda row: f"answer {row} to another's prompt"):
            values_A = policy.score_actions(batch).logprobs_A.double().cpu()
        total += float((values_A - reference_A).sum())
        count += len(batch.rows_R)
    sums = policy.ranks.sum({"total": total, "count": count})
    return max(sums["total"] / max(sums["count"], 1), 0.0)


@torch.no_grad()
def _measure(pack: StepPack, scores: PolicyScores) -> dict[str, Tensor]:
    """What every loss has: entropy, and how far the policy is from where the data is from."""
    sums = {"entropy": scores.entropies_A.double().sum()}
    if pack.advantages_A is not None:
        sums["advantage_abs"] = pack.advantages_A.abs().double().sum()
    if pack.origin_A is None:
        return sums
    known_A = torch.isfinite(pack.origin_A)
    logprobs_A = scores.logprobs_A[known_A.to(scores.logprobs_A.device)]
    origin_A = pack.origin_A[known_A].to(logprobs_A.device)
    found = measure_ratios(compute_log_ratios(logprobs_A, origin_A))
    return sums | found | {"num_compared": known_A.sum().double()}


def summarize_sums(sums: dict[str, float]) -> dict[str, Any]:
    """Sums over a step's trained tokens -> its metrics."""
    rest = dict(sums)
    count = rest.pop("num_actions")
    record: dict[str, Any] = {
        "loss": rest.pop("loss"),
        "entropy": rest.pop("entropy") / count,
        "tokens": int(rest.pop("num_tokens")),
        "computed_tokens": int(rest.pop("num_computed")),
        "action_tokens": int(count),
    }
    if compared := rest.pop("num_compared", 0.0):
        ratio, squared = rest.pop("ratio"), rest.pop("ratio_squared")
        record |= {
            "approx_kl": rest.pop("kl") / compared,
            "ess_fraction": ratio**2 / (compared * squared),
            "drift": rest.pop("drift") / compared,
        }
    for name, value in rest.items():
        if name.startswith(OF_TRAJECTORIES):
            record[name.removeprefix(OF_TRAJECTORIES)] = value
        else:
            record[_NAMES.get(name, name)] = value / count
    return record


@torch.no_grad()
def measure_drift(
    policy: Policy, data: TrainingData, config: RunConfig, trajectories: Sequence[int]
) -> float | None:
    """Mean |recorded - recomputed| log-probability of some trajectories; None without recorded.

    0 when the policy is the one that was recorded: then tokens, template and temperature agree.
    """
    rows = [r for n in trajectories for r in data.rows_of_N[n]]
    exact = [r for r in rows if data.rows[r].logprobs_T is not None]
    total, count = 0.0, 0
    for _, batch in pack_all(
        data.rows,
        exact,
        tokens_per_pack=policy.limit_pack(config.train.tokens_per_pack),
        shared_up_to=policy.shared_up_to,
        ranks=policy.ranks,
    ):
        if batch.behaviour_logprobs_A is not None:
            with explain_out_of_memory(batch, data.name_row):
                logprobs_A = policy.score_actions(batch).logprobs_A.cpu()
            total += float((logprobs_A - batch.behaviour_logprobs_A).abs().double().sum())
            count += batch.num_actions
    sums = policy.ranks.sum({"total": total, "count": count})
    return sums["total"] / sums["count"] if sums["count"] else None
