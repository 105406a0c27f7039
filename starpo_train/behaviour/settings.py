"""TOML file of `starpo-train behaviour` -> BehaviourConfig."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starpo_train.config import ModelSection, TrainSection
from starpo_train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourSection:
    """Whose log-probabilities are wanted, and how."""

    dataset: Path
    """Folder written by `starpo-trace export`."""
    output: Path
    """Folder for the log-probabilities; a run takes them by `data.behaviour`."""
    method: Literal["fit", "rescore"]
    """fit: a model is fitted to the data, and what it says is an estimate; rescore: the model that
    sampled the data is asked again, and what it says is exact."""
    split: str = "train"
    models: tuple[str, ...] = ()
    """Only turns sampled by these models; empty: every turn."""
    lossy_rendering: Literal["drop", "keep"] = "drop"
    """As in a run file."""
    folds: int = 2
    """fit: parts of the data, each scored by a model fitted to the others."""
    policy_id: str | None = None
    """rescore: the policy, as recorded, that `model.path` is."""
    weights_sha256: str | None = None
    """rescore: what the deployment that sampled the data says its weights are; `starpo-train
    behaviour` prints that of `model.path`."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourConfig:
    """All of the file."""

    behaviour: BehaviourSection
    model: ModelSection
    train: TrainSection = field(default_factory=TrainSection)

    def __post_init__(self) -> None:
        """Refuse what could not be done."""
        if self.behaviour.folds < 2:
            raise ConfigError(
                f"behaviour.folds = {self.behaviour.folds}: must be 2 or more; no trajectory may be "
                "scored by a model that was fitted to it."
            )
        if self.behaviour.method == "rescore" and (
            self.behaviour.policy_id is None or self.behaviour.weights_sha256 is None
        ):
            raise ConfigError(
                "behaviour.method = 'rescore' needs behaviour.policy_id and "
                "behaviour.weights_sha256: log-probabilities are exact only where the weights that "
                "sampled the data are known to be those at model.path."
            )
