"""The policy at an epoch's start: what ratios are formed against in its place of the behaviour policy.

Decoupled PPO (arXiv 2505.24298): the step is held near pi_proximal, and what that has moved away from
the behaviour policy mu is made up for by weights pi_proximal / mu. Suffixes: A trained tokens of a row,
N trajectories, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from starpo_train.config import AlgorithmSection
from starpo_train.losses.correction import correct_ratios, mask_off_policy_sequences
from starpo_train.tokens import TokenSequence

PROXIMAL: Final = "proximal.logprobs_A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proximal:
    """What an epoch's losses need of the policy at its start."""

    logprobs_R: list[np.ndarray]
    """float32 [A] per row."""
    weights_R: list[np.ndarray]
    """float32 [A] per row: pi_proximal / mu, held or masked."""
    kept: float
    """Share of the trained tokens whose weight is not 0."""


def correct_rows(
    logprobs_R: list[np.ndarray],
    rows: Sequence[TokenSequence],
    rows_of_N: Sequence[Sequence[int]],
    advantages_R: Sequence[np.ndarray],
    section: AlgorithmSection,
) -> Proximal:
    """Log-probabilities of the policy now -> Proximal; every row has the behaviour policy's."""
    log_ratios_R = [
        torch.from_numpy(now.astype(np.float64) - row.recorded_logprobs())
        for now, row in zip(logprobs_R, rows, strict=True)
    ]
    if section.correction.startswith("sequence_"):  # the product over all that a trajectory sampled
        for of_one in rows_of_N:
            whole = sum(float(log_ratios_R[r].sum()) for r in of_one)
            for r in of_one:
                log_ratios_R[r] = torch.full_like(log_ratios_R[r], whole)
    if section.correction == "off_policy_mask":
        weights_R = _mask_drifted(log_ratios_R, rows_of_N, advantages_R, section.correction_cap)
    else:
        masked = section.correction.endswith("mask")
        limits = {"cap": section.correction_cap, "floor": section.correction_floor}
        weights_R = [
            correct_ratios(log_ratios_A, **limits, masked=masked).float().numpy()
            for log_ratios_A in log_ratios_R
        ]
    num_tokens = sum(len(weights_A) for weights_A in weights_R)
    num_kept = sum(int((weights_A > 0).sum()) for weights_A in weights_R)
    return Proximal(logprobs_R=logprobs_R, weights_R=weights_R, kept=num_kept / max(num_tokens, 1))


def _mask_drifted(
    log_ratios_R: list[torch.Tensor],
    rows_of_N: Sequence[Sequence[int]],
    advantages_R: Sequence[np.ndarray],
    threshold: float,
) -> list[np.ndarray]:
    """Bad tokens count only in trajectories that have not become too unlikely."""
    weights_R = [np.empty(0, dtype=np.float32)] * len(log_ratios_R)
    for of_one in rows_of_N:
        mean = torch.cat([log_ratios_R[r] for r in of_one]).mean()
        for r in of_one:
            advantages_A = torch.from_numpy(advantages_R[r])
            first_A = torch.zeros(len(advantages_A), dtype=torch.long)
            weights_R[r] = mask_off_policy_sequences(
                mean[None], advantages_A, first_A, threshold=threshold
            ).numpy()
    return weights_R
