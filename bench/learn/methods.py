"""The name of a method -> the run file that trains it, or the TRL trainer that does.

Whatever a method needs beside the data is the same for all: the model that the traffic was recorded
with, passes over the data, trajectories per step, the schedule. The learning rate and what the loss
leaves open are each method's own, the best that was tried on FrozenLake and TextCraft (`tried.toml`); none
were tried for GRPO and StarPO-S, which have those of StarPO's default form, nor for TRL's trainers.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learn.bases import TINY, Base

LEARNING_RATE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table."""

    title: str
    algorithm: dict[str, Any] = field(default_factory=dict)
    """`[algorithm]` of the run file."""
    train: dict[str, Any] = field(default_factory=dict)
    """What `[train]` says other than the rest."""
    diagnostics: dict[str, Any] = field(default_factory=dict, repr=False)
    """What `[diagnostics]` says; it is not in the hash of a cell's settings, which has none."""
    learning_rate: float = LEARNING_RATE
    trl: str | None = None
    """Trained by TRL instead: sft | dpo | kto."""


METHODS = {
    "auto": Method(title="Starpo, `auto`", algorithm={"name": "auto"}),
    "starpo": Method(
        title="StarPO, by token",
        algorithm={
            "name": "starpo",
            "advantage": "dr_grpo",
            "aggregation": "token-mean",
            "clip_high": 2.0,
        },
        learning_rate=3e-4,
    ),
    "starpo_s": Method(
        title="StarPO-S",
        algorithm={"name": "starpo", "group_filter": "starpo_s"},
        learning_rate=2e-4,
    ),
    "grpo": Method(
        title="GRPO, offline",
        algorithm={
            "name": "starpo",
            "advantage": "grpo",
            "aggregation": "seq-mean-token-mean",
            "clip_high": 0.2,
        },
        learning_rate=2e-4,
    ),
    "topr": Method(title="TOPR", algorithm={"name": "topr"}, learning_rate=5e-4),
    "filtered_bc": Method(title="filtered BC", algorithm={"name": "filtered_bc"}),
    "awr": Method(
        title="AWR",
        algorithm={"name": "awr", "beta": 0.2, "aggregation": "token-mean"},
        learning_rate=5e-4,
    ),
    "dro": Method(title="DRO", algorithm={"name": "dro", "beta": 0.1}, learning_rate=3e-4),
    "kto": Method(title="KTO", algorithm={"name": "kto", "beta": 1.0}, learning_rate=5e-4),
    "dpo": Method(title="DPO", algorithm={"name": "dpo", "beta": 1.0}, learning_rate=3e-4),
    "trl_sft": Method(title="TRL SFT on successes", trl="sft"),
    "trl_dpo": Method(title="TRL DPO", trl="dpo", learning_rate=3e-4),
    "trl_kto": Method(title="TRL KTO", trl="kto", learning_rate=3e-4),
}


def write_run_file(
    method: Method,
    folder: Path,
    *,
    base: Path,
    dataset: Path,
    seed: int,
    epochs: int,
    made_of: Base = TINY,
) -> Path:
    """`folder/run.toml`, whose run goes to `folder/run`; the model at `base` is `made_of` something."""
    sections = {
        "run": {"output": str(folder / "run"), "seed": seed},
        "data": {"dataset": str(dataset)},
        "model": {"path": str(base), "lora_rank": made_of.lora_rank},
        "algorithm": method.algorithm,
        "train": {
            "epochs": epochs,
            "learning_rate": method.learning_rate * made_of.rate_factor,
            "schedule": "cosine",
            "trajectories_per_step": made_of.trajectories_per_step,
            "threads": 1,
        }
        | method.train,
        "diagnostics": method.diagnostics,
    }
    lines = []
    for name, values in sections.items():
        lines += [
            f"[{name}]",
            *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
            "",
        ]
    path = folder / "run.toml"
    path.write_text("\n".join(lines))
    return path
