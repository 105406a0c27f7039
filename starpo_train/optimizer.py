"""Gradients -> new weights: AdamW, warm-up, clipping, and a state that restores exactly."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from starpo_train.config import TrainSection
from starpo_train.errors import CheckpointError
from starpo_train.policy import Policy
from starpo_train.slices import SavedTensors, Slice, load_like, take_slice

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_FUSED_DEVICES = ("cpu", "cuda")
"""Where PyTorch's AdamW is one kernel."""


class Optimizer:
    """AdamW over a policy's trained parameters; vectors (norms, biases) are not decayed."""

    def __init__(self, policy: Policy, section: TrainSection, *, total_steps: int) -> None:
        self._section = section
        self._total_steps = total_steps
        self._names, self._parameters = zip(*policy.trained_parameters(), strict=True)
        matrices = [p for p in self._parameters if p.dim() >= 2]
        vectors = [p for p in self._parameters if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": section.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=section.learning_rate,
            betas=(0.9, section.beta2),
            fused=self._parameters[0].device.type in _FUSED_DEVICES,
        )

    def clip_gradients(self) -> float:
        """Scale gradients down to the configured norm; returns the norm before."""
        norm: Any = torch.nn.utils.clip_grad_norm_(self._parameters, self._section.max_grad_norm)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def apply(self, step: int, *, grad_norm: float | None = None) -> float:
        """Take optimizer step number `step` (0..); returns the learning rate used.

        Where the gradient is exactly 0, as when every ratio is clipped, nothing moves: AdamW would
        go on by its momentum alone, away from the data.
        """
        learning_rate = self.learning_rate_at(step)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        if grad_norm != 0.0:
            self._adamw.step()
        self.discard_gradients()
        return learning_rate

    def discard_gradients(self) -> None:
        """Forget gradients without using them."""
        self._adamw.zero_grad(set_to_none=True)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up from one step's share, then constant or a cosine down to a tenth."""
        section = self._section
        warmup = round(section.warmup_fraction * self._total_steps)
        if step < warmup:
            return section.learning_rate * (step + 1) / (warmup + 1)
        if section.schedule == "constant":
            return section.learning_rate
        progress = (step - warmup) / max(1, self._total_steps - warmup)
        return section.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))

    def snapshot(self) -> dict[str, Tensor | Slice]:
        """Moments by parameter name, `adamw.exp_avg.<name>` and so on; what this rank holds."""
        return {
            f"adamw.{moment}.{name}": take_slice(self._adamw.state[parameter][moment])
            for name, parameter in zip(self._names, self._parameters, strict=True)
            for moment in _MOMENTS
            if parameter in self._adamw.state
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take moments over from `snapshot`; of a sharded parameter, this rank's rows.

        Raises:
            CheckpointError: a moment is missing or has another shape.
        """
        if not any(name.startswith("adamw.") for name in tensors):
            return  # a checkpoint from before the first step
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if any(f"adamw.{moment}.{name}" not in tensors for moment in _MOMENTS):
                raise CheckpointError(f"optimizer state of {name!r} is missing.")
            shape = _find_shape(tensors, f"adamw.exp_avg.{name}")
            if shape != parameter.shape:
                raise CheckpointError(
                    f"optimizer state of {name!r} has shape {tuple(shape)}, the parameter "
                    f"{tuple(parameter.shape)}; the run's model has changed."
                )
            step = tensors[f"adamw.step.{name}"]
            self._adamw.state[parameter] = {
                "exp_avg": load_like(parameter, tensors, f"adamw.exp_avg.{name}"),
                "exp_avg_sq": load_like(parameter, tensors, f"adamw.exp_avg_sq.{name}"),
                "step": step.to(parameter.device).clone(),
            }


def _find_shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, SavedTensors) else tensors[name].shape
