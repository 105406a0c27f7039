"""Deviations of the groups' rewards -> which groups to train on, or how much. Suffix: G groups."""

import torch
from torch import Tensor


def select_top_groups(std_G: Tensor, *, keep: float) -> Tensor:
    """StarPO-S (arXiv 2504.20073): the `keep` share of the groups, those of highest deviation.

    Returns a bool mask over G with int(keep * G) groups set, at least one. A group of equal rewards,
    or of one, teaches nothing and is never among them: there may be fewer, or none.
    """
    num_kept = max(1, int(keep * len(std_G)))
    chosen = torch.argsort(std_G, descending=True, stable=True)[:num_kept]
    mask_G = torch.zeros_like(std_G, dtype=torch.bool)
    mask_G[chosen] = True
    return mask_G & (std_G > 0)


def select_snr_groups(std_G: Tensor, *, top_p: float, slack: float = 0.01) -> Tensor:
    """RAGEN-2's signal-to-noise filter (arXiv 2604.06268): the groups with most of the deviation.

    Groups without deviation are left out; of the others, the highest first, as many as it takes until
    their deviations add up to top_p times the sum of all, less `slack`. From top_p 1 on all are kept.
    When `slack` is as large as that, none is: their deviations are noise. Returns a bool mask over G.

    Deviations (.5, 0, .3, .2), top_p .8: .5 + .3 reach .8 * 1 - .01, so the last is left out.
    """
    informative_G = std_G > 1e-10
    if top_p >= 1.0:
        return informative_G
    mask_G = torch.zeros_like(informative_G)
    threshold = top_p * float(std_G[informative_G].sum()) - slack
    total = 0.0
    for g in torch.argsort(std_G, descending=True, stable=True).tolist():
        if total >= threshold or not informative_G[g]:
            break
        total += float(std_G[g])
        mask_G[g] = True
    return mask_G


def compute_soft_weights(std_G: Tensor) -> Tensor:
    """RAGEN-2's soft filter: a group's advantages times its deviation over the largest one.

    Deviations (.5, 0, .25) weigh (1, 0, .5); without any deviation all weigh 0.
    """
    largest = std_G.max() if len(std_G) else std_G.new_tensor(0.0)
    return std_G / largest if largest > 0 else torch.zeros_like(std_G)
