"""The run's algorithm -> its loss: on tokens, or on whole trajectories' log-probabilities.

Suffixes: A trained tokens of a pack, N trajectories of a step, P pairs of them.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from starpo_train.config import AlgorithmSection
from starpo_train.losses.cispo import compute_cispo_loss, compute_cispo_trl_loss
from starpo_train.losses.dpo import compute_dpo_loss
from starpo_train.losses.dppo_tv import compute_dppo_tv_loss
from starpo_train.losses.dro import compute_dro_loss
from starpo_train.losses.filtered_bc import compute_filtered_bc_loss
from starpo_train.losses.gspo import compute_gspo_loss
from starpo_train.losses.kl import compute_kl
from starpo_train.losses.kto import compute_kto_loss
from starpo_train.losses.output import LossOutput
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.sapo import compute_sapo_loss
from starpo_train.losses.topr import compute_topr_loss

WITH_BASELINE: Final = ("awr", "dro", "topr", "topr_reference")
"""Algorithms on rewards less a baseline (`algorithm.baseline`)."""
WITH_RATIOS: Final = ("starpo", "topr")
"""Algorithms that weigh by pi / mu, and so need what was recorded of mu."""
ON_TRAJECTORIES: Final = ("topr", "topr_reference", "dro", "kto", "dpo")
"""Algorithms whose loss is of the trajectories' log-probabilities."""
WITH_REFERENCE: Final = ("topr_reference", "dro", "kto", "dpo")
"""Algorithms that compare with the model the run began with."""
PREFERENCE_BETA: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """What is known of a pack's trained tokens beside the policy's log-probabilities."""

    coefficients_A: Tensor
    """Factor of each token's loss: weight, aggregation and the step's denominators."""
    advantages_A: Tensor | None
    """None for filtered BC."""
    behaviour_A: Tensor | None
    """Log-probabilities under mu, or under the policy at the epoch's start."""
    corrections_A: Tensor | None
    """Weights for what the policy at the epoch's start has moved away from mu."""
    reference_A: Tensor | None
    """Log-probabilities under the model the run began with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryTerms:
    """What is known of a step's trajectories beside the policy's log-probabilities; float64."""

    outcomes_N: Tensor
    """Rewards, less what they are compared with."""
    lengths_N: Tensor
    """Summed weight of the trained tokens."""
    behaviour_N: Tensor | None
    """Summed log-probabilities under mu."""
    reference_N: Tensor | None
    """Summed log-probabilities under the model the run began with."""
    desirable_N: Tensor
    """bool: the reward is at or above the threshold (KTO)."""
    pairs_P2: Tensor
    """Better and worse attempt (DPO)."""
    gains_N: Tensor
    """Summed coefficient * advantage of the tokens whose advantage is positive (GSPO)."""
    losses_N: Tensor
    """Summed coefficient * -advantage of the others (GSPO)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """An algorithm with its settings."""

    algorithm: str
    """One of `provenance.ALGORITHMS`."""
    section: AlgorithmSection

    @property
    def is_on_trajectories(self) -> bool:
        """Whether the loss takes whole trajectories' log-probabilities."""
        of_gspo = self.algorithm == "starpo" and self.section.loss == "gspo"
        return of_gspo or self.algorithm in ON_TRAJECTORIES

    @property
    def needs_behaviour(self) -> bool:
        """Whether ratios to what was recorded are in the loss."""
        return self.algorithm in WITH_RATIOS

    @property
    def needs_reference(self) -> bool:
        """Whether the model that the run began with must have scored the data."""
        of_kl = self.algorithm == "starpo" and self.section.kl_coef > 0
        return of_kl or self.algorithm in WITH_REFERENCE

    @property
    def compares_attempts(self) -> bool:
        """Whether the loss sets attempts at one task against each other, so all are in one step."""
        return self.algorithm == "dpo"

    def compute_on_tokens(self, logprobs_A: Tensor, terms: TokenTerms) -> LossOutput:
        """A pack's share of the step's loss."""
        coefficients_A = terms.coefficients_A
        if self.algorithm == "filtered_bc":
            return compute_filtered_bc_loss(logprobs_A, coefficients_A)
        advantages_A = _require(terms.advantages_A, "advantages")
        if self.algorithm in ("awr", "awac"):  # they are the weights
            return compute_filtered_bc_loss(logprobs_A, coefficients_A * advantages_A)
        if terms.corrections_A is not None:
            coefficients_A = coefficients_A * terms.corrections_A
        behaviour_A = _require(terms.behaviour_A, "log-probabilities of the behaviour policy")
        return self._compute_policy_loss(logprobs_A, behaviour_A, advantages_A, coefficients_A)

    def compute_extras(self, logprobs_A: Tensor, entropies_A: Tensor, terms: TokenTerms) -> Tensor:
        """A pack's share of what is added to any loss: entropy bonus, divergence from the reference."""
        extras = logprobs_A.new_zeros(())
        if self.section.entropy_coef:
            bonus = (terms.coefficients_A * entropies_A).sum()
            extras = extras - self.section.entropy_coef * bonus
        if self.section.kl_coef and self.algorithm == "starpo":
            reference_A = _require(terms.reference_A, "log-probabilities of the reference")
            kl_A = compute_kl(logprobs_A, reference_A, estimator=self.section.kl_estimator)
            extras = extras + self.section.kl_coef * (terms.coefficients_A * kl_A).sum()
        return extras

    def _compute_policy_loss(
        self, logprobs_A: Tensor, behaviour_A: Tensor, advantages_A: Tensor, coefficients_A: Tensor
    ) -> LossOutput:
        section = self.section
        given = (logprobs_A, behaviour_A, advantages_A, coefficients_A)
        clips = {"clip_low": section.clip_low, "clip_high": section.clip_high}
        if section.loss == "ppo_clip":
            return compute_ppo_clip_loss(*given, **clips, dual_clip=section.dual_clip)
        if section.loss == "cispo":
            return compute_cispo_loss(*given, **clips)
        if section.loss == "cispo_trl":
            return compute_cispo_trl_loss(*given, ratio_cap=section.ratio_cap)
        if section.loss == "sapo":
            return compute_sapo_loss(*given)
        return compute_dppo_tv_loss(*given)

    def compute_on_trajectories(
        self, logprobs_N: Tensor, terms: TrajectoryTerms, *, divergence: float = 0.0
    ) -> LossOutput:
        """The step's loss; `divergence` is KTO's z."""
        if self.algorithm == "starpo":
            return _compute_gspo(logprobs_N, terms, self.section)
        if self.algorithm == "topr":
            behaviour_N = _require(terms.behaviour_N, "log-probabilities of the behaviour policy")
            return compute_topr_loss(logprobs_N, behaviour_N, terms.outcomes_N)
        beta = PREFERENCE_BETA if self.section.beta is None else self.section.beta
        reference_N = _require(terms.reference_N, "log-probabilities of the reference")
        if self.algorithm == "topr_reference":
            return compute_topr_loss(logprobs_N, reference_N, terms.outcomes_N)
        if self.algorithm == "dro":
            return compute_dro_loss(logprobs_N, reference_N, terms.outcomes_N, tau=beta)
        if self.algorithm == "kto":
            return compute_kto_loss(
                logprobs_N, reference_N, terms.desirable_N, divergence=divergence, beta=beta
            )
        return compute_dpo_loss(logprobs_N, reference_N, terms.pairs_P2, beta=beta)


def _compute_gspo(
    logprobs_N: Tensor, terms: TrajectoryTerms, section: AlgorithmSection
) -> LossOutput:
    """One ratio per trajectory, so its tokens count as two: one that gains and one that loses."""
    behaviour_N = _require(terms.behaviour_N, "exact log-probabilities")
    every_N = torch.arange(len(logprobs_N), device=logprobs_N.device)
    advantages_A = torch.cat([terms.gains_N, -terms.losses_N])
    return compute_gspo_loss(
        (logprobs_N - behaviour_N) / terms.lengths_N,
        advantages_A,
        every_N.repeat(2),
        torch.ones_like(advantages_A),
        clip_low=section.clip_low,
        clip_high=section.clip_high,
    )


def _require(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise AssertionError(f"{what} did not reach the loss.")
    return values
