"""What an off-policy evaluation is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starpo_train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeSettings:
    """What is asked."""

    checkpoint: str
    """Model folder of the policy in question, or a name in the hub's local cache."""
    dataset: Path
    split: str = "test"
    models: tuple[str, ...] = ()
    """Turns of these models are the policy's; of any other they are part of its world."""
    logprobs: Literal["raw", "processed"] = "raw"
    """As `data.logprobs` of a run."""
    behaviour: Path | None = None
    """As `data.behaviour` of a run."""
    gamma: float = 1.0
    process_reward_weight: float = 0.0
    cluster: Literal["task", "user"] = "task"
    samples: int = 0
    """Candidate turns sampled at each recorded state; 0: no DR, no FQE."""
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no evaluation could use."""
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"--gamma {self.gamma}: must be between 0 and 1.")
        if self.samples < 0:
            raise ConfigError(f"--samples {self.samples}: must be 0 or greater.")
