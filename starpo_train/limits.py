"""Sums of a step -> whether the policy has left the recorded one too far for its data to count.

Offline, every epoch reuses the same data under a policy that moves away from it. The paper's runs get
worse with each reuse (arXiv 2504.20073, online-k), so an epoch ends at a limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starpo_train.config import AlgorithmSection
from starpo_train.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceededLimit:
    """A step that is not taken."""

    name: Literal["kl_ceiling", "ess_floor"]
    metric: str
    """Name of what was measured, as in metrics."""
    value: float
    limit: float

    def refuse(self, model: str) -> DataError:
        """The error when it is so before the first step."""
        if self.name == "kl_ceiling":
            return DataError(
                f"KL(behaviour | {model}) = {self.value:.4g} nats/token before "
                f"the first step, above algorithm.kl_ceiling = {self.limit}; start from the model "
                "that was recorded, or raise the ceiling."
            )
        return DataError(
            f"{self.value:.4g} of a step's tokens are left after importance weights for {model} "
            f"before the first step, below algorithm.ess_floor = {self.limit}; start from the model "
            "that was recorded, or lower the floor."
        )


def find_exceeded_limit(
    sums: Mapping[str, float], algorithm: AlgorithmSection
) -> ExceededLimit | None:
    """The limit that a step's sums over trained tokens exceed; None without tokens to compare.

    KL = sum (rho - 1 - log rho) / n, in nats per token; ESS = (sum rho)^2 / (n sum rho^2).
    """
    ceiling, floor = algorithm.kl_ceiling, algorithm.ess_floor
    compared = sums.get("num_compared")
    if ceiling is not None and compared:
        divergence = sums["kl"] / sums["num_compared"]
        if divergence > ceiling:
            return ExceededLimit(
                name="kl_ceiling", metric="approx_kl", value=divergence, limit=ceiling
            )
    if floor is not None and compared:
        share = sums["ratio"] ** 2 / (sums["num_compared"] * sums["ratio_squared"])
        if share < floor:
            return ExceededLimit(name="ess_floor", metric="ess_fraction", value=share, limit=floor)
    return None
