"""Turn ratios, rewards and a fitted Q -> the doubly robust estimate of the policy's value.

Suffixes: N trajectories, K turns (padded).
Source: Jiang and Li 2016 (arXiv 1511.03722), eq. 10.
"""

import math

import torch
from torch import Tensor

from starpo_train.ope.importance import EstimatorTerms, build_pdis_terms


def build_dr_terms(
    log_ratios_NK: Tensor,
    rewards_NK: Tensor,
    mask_NK: Tensor,
    *,
    q_values_NK: Tensor,
    values_NK: Tensor,
    gamma: float = 1.0,
) -> EstimatorTerms:
    """DR: v_k = V(h_k) + rho_k (r_k + gamma v_{k+1} - Q(h_k, a_k)), v_T = 0; the mean of v_0.

    Unbiased with the true ratios whatever Q is, if V(h) is E_pi Q(h, a) and neither was fitted on
    the trajectory itself. Unrolled it is V(h_0) plus PDIS of what Q left unexplained,
    r_k + gamma V(h_{k+1}) - Q(h_k, a_k), which is how it is computed: in log space.
    One turn, rho = 2, r = 1, Q = .5, V = .4: .4 + 2 * .5 = 1.4.
    """
    values_NK = torch.where(mask_NK, values_NK, 0.0)
    following_NK = torch.cat([values_NK[:, 1:], torch.zeros_like(values_NK[:, :1])], dim=1)
    left_NK = torch.where(mask_NK, rewards_NK + gamma * following_NK - q_values_NK, 0.0)
    terms = build_pdis_terms(log_ratios_NK, left_NK, mask_NK, gamma=gamma)
    # a sum of two scales: written in the larger of them
    log_scale = max(terms.log_scale, 0.0)
    correction_N1 = terms.numerators_NF * math.exp(terms.log_scale - log_scale)
    return EstimatorTerms(
        numerators_NF=correction_N1 + values_NK[:, :1] * math.exp(-log_scale),
        denominators_NF=terms.denominators_NF,
        log_scale=log_scale,
    )


def compute_dr_values(
    log_ratios_NK: Tensor,
    rewards_NK: Tensor,
    mask_NK: Tensor,
    *,
    q_values_NK: Tensor,
    values_NK: Tensor,
    gamma: float = 1.0,
) -> Tensor:
    """v_0 of each trajectory by the recursion itself; overflows where ratios do."""
    value_N = torch.zeros_like(rewards_NK[:, 0])
    for k in range(rewards_NK.shape[1] - 1, -1, -1):
        left_N = rewards_NK[:, k] + gamma * value_N - q_values_NK[:, k]
        updated_N = values_NK[:, k] + log_ratios_NK[:, k].exp() * left_N
        value_N = torch.where(mask_NK[:, k], updated_N, value_N)
    return value_N
