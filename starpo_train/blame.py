"""A loss or gradient that is no number -> the trajectories that it comes from."""

from collections.abc import Callable, Sequence

import torch
from torch.distributed.tensor import DTensor

from starpo_train.errors import TrainingError
from starpo_train.objective import Objective
from starpo_train.policy import Policy
from starpo_train.step import StepPack, compute_pack_loss
from starpo_train.trainingdata import TrainingData

BuildPacks = Callable[[list[int]], list[StepPack]]
"""Trajectories -> their packs."""


def refuse_loss(
    rows: list[int],
    loss: float,
    *,
    step: int,
    policy: Policy,
    data: TrainingData,
    objective: Objective,
    build_packs: BuildPacks,
) -> Exception:
    """Name the trajectories, of this rank's suspect rows, whose own loss is no number.

    Every rank calls it.
    """
    owners = _find_owners(rows, policy, data)
    guilty = []
    for n in owners:
        with torch.no_grad():
            parts = [compute_pack_loss(policy, alone, objective).loss for alone in build_packs([n])]
        if policy.ranks.any(not all(bool(torch.isfinite(part)) for part in parts)):
            guilty.append(n)
    error = TrainingError(
        f"step {step}: the loss is {loss}; trajectories {name_trajectories(guilty or owners, data)}. "
        "Lower train.learning_rate or look at these."
    )
    return policy.ranks.join(error)


def refuse_gradient(
    trajectories: list[int],
    grad_norm: float,
    *,
    step: int,
    policy: Policy,
    data: TrainingData,
    objective: Objective,
    build_packs: BuildPacks,
) -> Exception:
    """Name the trajectories whose own tokens give a gradient that is no number.

    Packs are computed again one by one, up to the first at fault, then that one's trajectories: less
    work than two steps. Every rank calls it.
    """

    def is_at_fault(packs: Sequence[StepPack]) -> bool:
        policy.model.zero_grad(set_to_none=True)
        for pack in packs:
            compute_pack_loss(policy, pack, objective).loss.backward()
        gradients = [p.grad for _, p in policy.trained_parameters() if p.grad is not None]
        own = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
        return policy.ranks.any(not all(bool(torch.isfinite(grad).all()) for grad in own))

    wrong = next((pack for pack in build_packs(trajectories) if is_at_fault([pack])), None)
    owners = trajectories if wrong is None else _find_owners(list(wrong.batch.rows_R), policy, data)
    guilty = [] if wrong is None else [n for n in owners if is_at_fault(build_packs([n]))]
    policy.model.zero_grad(set_to_none=True)
    note = "" if guilty else " (each alone gives a finite one)"
    error = TrainingError(
        f"step {step}: the gradient norm is {grad_norm}; trajectories "
        f"{name_trajectories(guilty or owners, data)}{note}. Lower train.learning_rate or look at "
        "these."
    )
    return policy.ranks.join(error)


def name_trajectories(trajectories: Sequence[int], data: TrainingData) -> str:
    """Ids of up to eight trajectories."""
    names = [data.trajectory_ids_N[n] for n in trajectories]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _find_owners(rows: list[int], policy: Policy, data: TrainingData) -> list[int]:
    """Trajectories of these rows, on whichever rank they are."""
    owner_of = {r: n for n, own in enumerate(data.rows_of_N) for r in own}
    return sorted({owner_of[r] for part in policy.ranks.gather(rows) for r in part})
