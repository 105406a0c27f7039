"""What every loss returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A pack's share of the step's loss, or the whole of a loss on trajectories."""

    loss: Tensor
    """Scalar with gradient; packs of one step add up to the step's loss."""
    sums: dict[str, Tensor]
    """Detached float64 scalars. Of a loss on tokens: sums over tokens; add over packs, divide by
    `num_tokens`. Of a loss on the step's trajectories: the step's figures as they are."""
