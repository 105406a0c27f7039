"""Layers of a transformers model -> the same numbers in fewer kernels, in place.

Which layers are replaced is seen from what they compute, not from their names; and where the model as a
whole then gives other numbers, none is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from starpo_train.gatedmlp import fuse_gated_mlps
from starpo_train.norms import fuse_norms
from starpo_train.rotary import fuse_rotary

TOLERANCE = 1e-4


def fuse_layers(
    model: nn.Module, *, device: str, is_low: bool, compute: Callable[[], Tensor]
) -> None:
    """Replace what is faster otherwise on this kind of device.

    `is_low`: products are in bfloat16, which only CUDA's layers gain by. `compute` gives numbers
    of the whole model, which must stay within `TOLERANCE`.
    """
    if device == "cpu" and is_low:
        return
    untouched = [module for module in model.modules() if "forward" not in vars(module)]
    before = compute()
    fuse_norms(model)
    if device == "cpu":
        fuse_gated_mlps(model)
        fuse_rotary(model)
    if torch.allclose(compute(), before, rtol=0, atol=TOLERANCE):
        return
    for module in untouched:
        vars(module).pop("forward", None)
