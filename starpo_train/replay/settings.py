"""What a replay is asked."""

from dataclasses import dataclass
from pathlib import Path

from starpo_train.errors import ConfigError
from starpo_train.evals.calls import ARGUMENT_MODES, ArgumentMode


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What is asked."""

    checkpoint: str
    """Model folder of the policy in question, or a name in the hub's local cache."""
    dataset: Path
    split: str = "test"
    threshold: float = 1.0
    """A reward that is a success."""
    models: tuple[str, ...] = ()
    """Turns of these models are replayed; of any other they are part of the world."""
    arguments: ArgumentMode = "exact"
    """How arguments are compared (docs/evaluators.md)."""
    temperature: float = 0.0
    """0: greedy."""
    seed: int = 0
    max_tokens: int | None = None
    """Of an answer; None: twice the longest recorded one."""

    def __post_init__(self) -> None:
        """Refuse values that no replay could use."""
        if self.arguments not in ARGUMENT_MODES:
            modes = ", ".join(ARGUMENT_MODES)
            raise ConfigError(f"--arguments {self.arguments}: must be one of {modes}.")
        if not 0 <= self.temperature <= 2:
            raise ConfigError(f"--temperature {self.temperature}: must be from 0 to 2.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"--max-tokens {self.max_tokens}: must be 1 or greater.")
