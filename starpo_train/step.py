"""Trajectories of one step -> packs, and each pack's share of the step's loss.

Suffixes: A trained tokens of a pack, N trajectories of the step, R rows of a pack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import AlgorithmSection, RunConfig
from starpo_train.errors import DataError
from starpo_train.losses.aggregation import compute_coefficients
from starpo_train.losses.filtered_bc import compute_filtered_bc_loss
from starpo_train.losses.output import LossOutput
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.memory import explain_out_of_memory
from starpo_train.pack import TokenBatch, pack_all
from starpo_train.policy import Policy
from starpo_train.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from starpo_train.prepare import TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPack:
    """One pack of a step with what its loss needs."""

    batch: TokenBatch
    coefficients_A: Tensor
    """Factor of each token's loss; over all packs of the step they add up to 1."""
    advantages_A: Tensor | None
    """None for filtered BC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """What a step's passes have found, over every rank; their gradients are on the weights."""

    sums: dict[str, float]
    """Over the step's trained tokens, as the losses name them, and how many there were."""
    suspect_rows: list[int]
    """Rows of this rank's packs whose loss is no number."""


def build_step_packs(
    data: "TrainingData",
    config: RunConfig,
    trajectories: Sequence[int],
    *,
    shared_up_to: int = 0,
    tokens_per_pack: int | None = None,
    ranks: Ranks = ALONE,
) -> list[StepPack]:
    """Rows of some trajectories -> packs that share the step's denominators; those of this rank."""
    rows = [r for n in trajectories for r in data.rows_of_N[n]]
    weight_sums_N = torch.tensor([data.weight_sum(n) for n in trajectories])
    coefficients_N = compute_coefficients(weight_sums_N, mode=config.algorithm.aggregation)
    coefficient_of = dict(zip(trajectories, coefficients_N.tolist(), strict=True))
    owner_of = {r: n for n in trajectories for r in data.rows_of_N[n]}
    packs = []
    for chosen, batch in pack_all(
        data.rows,
        rows,
        tokens_per_pack=tokens_per_pack or config.train.tokens_per_pack,
        shared_up_to=shared_up_to,
        ranks=ranks,
    ):
        coefficients_R = torch.tensor([coefficient_of[owner_of[r]] for r in chosen])
        advantages_A = None
        if data.advantages_R:
            parts = [data.advantages_R[r] for r in chosen] or [np.empty(0, dtype=np.float32)]
            advantages_A = torch.from_numpy(np.concatenate(parts))
        packs.append(
            StepPack(
                batch=batch,
                coefficients_A=coefficients_R[batch.row_of_A] * batch.weights_A,
                advantages_A=advantages_A,
            )
        )
    return packs


def compute_pack_loss(
    policy: Policy, pack: StepPack, algorithm: AlgorithmSection
) -> tuple[LossOutput, Tensor]:
    """A pack's share of the step's loss, and the entropies at its trained tokens."""
    scores = policy.score_actions(pack.batch)
    coefficients_A = pack.coefficients_A.to(policy.device)
    behaviour_A = pack.batch.behaviour_logprobs_A
    if pack.advantages_A is None:
        output = compute_filtered_bc_loss(scores.logprobs_A, coefficients_A)
    elif behaviour_A is None:
        raise DataError("a row without exact log-probabilities reached StarPO's loss.")
    else:
        output = compute_ppo_clip_loss(
            scores.logprobs_A,
            behaviour_A.to(policy.device),
            pack.advantages_A.to(policy.device),
            coefficients_A,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
        )
    if algorithm.entropy_coef:
        bonus = algorithm.entropy_coef * (coefficients_A * scores.entropies_A).sum()
        output = replace(output, loss=output.loss - bonus)
    return output, scores.entropies_A


def accumulate_gradients(
    policy: Policy,
    packs: Sequence[StepPack],
    algorithm: AlgorithmSection,
    name_row: Callable[[int], str],
) -> StepSums:
    """Forward and backward of every pack of this rank; `name_row` gives a row's trajectory.

    Raises:
        OutOfMemoryError: a pack does not fit into memory.
    """
    totals: dict[str, Tensor] = {}
    suspect_rows: list[int] = []
    for pack in packs:
        with explain_out_of_memory(pack.batch, name_row):
            output, entropies_A = compute_pack_loss(policy, pack, algorithm)
            if not torch.isfinite(output.loss):
                suspect_rows += pack.batch.rows_R
            output.loss.backward()
        sums = output.sums | {
            "loss": output.loss.detach().double(),
            "entropy": entropies_A.detach().double().sum(),
        }
        if pack.advantages_A is not None:
            sums["advantage_abs"] = pack.advantages_A.abs().double().sum()
        for name, value in sums.items():
            totals[name] = totals[name] + value if name in totals else value
    counts = {
        "num_tokens": sum(pack.batch.num_row_tokens for pack in packs),
        "num_computed": sum(pack.batch.num_tokens for pack in packs),
        "num_actions": sum(pack.batch.num_actions for pack in packs),
    }
    found = counts | {name: float(value) for name, value in totals.items()}
    return StepSums(sums=policy.ranks.sum(found), suspect_rows=suspect_rows)


def summarize_sums(sums: dict[str, float]) -> dict[str, Any]:
    """Sums over a step's trained tokens -> its metrics."""
    count = sums["num_actions"]
    record: dict[str, Any] = {
        "loss": sums["loss"],
        "entropy": sums["entropy"] / count,
        "tokens": int(sums["num_tokens"]),
        "computed_tokens": int(sums["num_computed"]),
        "action_tokens": int(count),
    }
    if "kl" in sums:
        record |= {
            "clip_fraction": sums["clipped"] / count,
            "approx_kl": sums["kl"] / count,
            "ess_fraction": sums["ratio"] ** 2 / (count * sums["ratio_squared"]),
            "advantage_mean_abs": sums["advantage_abs"] / count,
        }
    return record


@torch.no_grad()
def measure_drift(
    policy: Policy, data: "TrainingData", config: RunConfig, trajectories: Sequence[int]
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
