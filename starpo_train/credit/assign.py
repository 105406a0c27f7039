"""Rewards + rows -> an advantage on each trained token, by the run's estimator.

Suffixes: N trajectories, R rows, K turns (in row order), A trained tokens of a row, S turn starts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import RunConfig
from starpo_train.credit.bilevel_gae import compute_turn_advantages, whiten_masked
from starpo_train.credit.critic import TurnValues, compute_turn_returns, fit_turn_values
from starpo_train.credit.group import compute_group_advantages, select_groups
from starpo_train.dataset import Trajectory
from starpo_train.errors import DataError
from starpo_train.memory import explain_out_of_memory
from starpo_train.pack import pack_all
from starpo_train.policy import Policy
from starpo_train.tokens import TokenSequence


@dataclass(slots=True, kw_only=True)
class TokenizedTrajectories:
    """Trajectories with their rows."""

    trajectories: list[Trajectory]
    rows: list[TokenSequence]
    rows_of_N: list[list[int]]
    """Rows of each trajectory; branches make it more than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What is left to train on, and with which advantages."""

    tokenized: TokenizedTrajectories
    """Without trajectories that have nothing to teach."""
    advantages_R: list[np.ndarray]
    """float32 [A] per row."""
    critic_values_K: Tensor | None
    """Value of every turn start before anything was left out; None without a critic."""
    facts: dict[str, Any]
    """Counts for the first metrics record."""


def assign_credit(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    *,
    critic_values_K: Tensor | None = None,
) -> Credit:
    """Group advantages or bi-level GAE; `critic_values_K` of an earlier call spares the fit."""
    algorithm = config.algorithm
    rewards_N = torch.tensor([_reward(t) for t in tokenized.trajectories], dtype=torch.float64)
    groups = compute_group_advantages(
        rewards_N,
        [t.task_id for t in tokenized.trajectories],
        normalize_std=algorithm.normalize_std,
        singleton=algorithm.singleton,
    )
    kept_G = select_groups(groups.std_G, keep=algorithm.keep_groups)
    kept_N = kept_G[groups.group_of_N]
    facts: dict[str, Any] = {
        "num_groups": len(groups.std_G),
        "num_groups_kept": int(kept_G.sum()),
        "groups_zero_variance": int(((groups.std_G == 0) & (groups.size_G > 1)).sum()),
        "groups_singleton": int((groups.size_G == 1).sum()),
    }
    if algorithm.advantage == "group":
        advantages_R = [
            np.full(row.num_actions, float(groups.advantages_N[n]), dtype=np.float32)
            for n, rows in enumerate(tokenized.rows_of_N)
            for row in (tokenized.rows[r] for r in rows)
        ]
        kept_N = kept_N & (groups.advantages_N != 0)  # an advantage of 0 has no gradient
    else:
        if critic_values_K is None:
            values = _fit_critic(tokenized, groups.group_of_N, config, policy)
            critic_values_K = values.values_K
            facts["critic_explained_variance"] = values.explained_variance
        advantages_R = _bilevel_advantages(tokenized, critic_values_K, config)
    kept, advantages_R = keep_trajectories(tokenized, advantages_R, kept_N.tolist())
    if algorithm.advantage == "bilevel_gae":
        advantages_R = _whiten(advantages_R)  # over what is trained, not over what was left out
    return Credit(
        tokenized=kept,
        advantages_R=advantages_R,
        critic_values_K=critic_values_K,
        facts=facts,
    )


def assign_turn_advantages(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    *,
    critic_values_K: Tensor | None = None,
) -> tuple[list[np.ndarray], Tensor, dict[str, Any]]:
    """Bi-level GAE's advantages before whitening, float [A] per row; the critic's values; facts."""
    values_K, facts = _ask_critic(tokenized, config, policy, critic_values_K)
    return _bilevel_advantages(tokenized, values_K, config), values_K, facts


def fit_first_values(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    *,
    critic_values_K: Tensor | None = None,
) -> tuple[np.ndarray, Tensor, dict[str, Any]]:
    """The critic's value of each trajectory's first turn, float64 [N]; all its values; facts."""
    values_K, facts = _ask_critic(tokenized, config, policy, critic_values_K)
    firsts = [turns[0][1] for turns in _turns_of(tokenized)]
    return values_K[firsts].numpy(), values_K, facts


def _ask_critic(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    critic_values_K: Tensor | None,
) -> tuple[Tensor, dict[str, Any]]:
    if critic_values_K is not None:
        return critic_values_K, {}
    numbers: dict[object, int] = {}
    groups = [
        numbers.setdefault(t.task_id or ("lone", i), len(numbers))
        for i, t in enumerate(tokenized.trajectories)
    ]
    values = _fit_critic(tokenized, torch.tensor(groups), config, policy)
    return values.values_K, {"critic_explained_variance": values.explained_variance}


def _fit_critic(
    tokenized: TokenizedTrajectories,
    group_of_N: Tensor,
    config: RunConfig,
    policy: Policy,
) -> TurnValues:
    """Values of all turn starts, turns in row order."""
    features_KH = _compute_features(tokenized, config, policy)
    returns_K, groups_K, usable_K = [], [], []
    for n, turns in enumerate(_turns_of(tokenized)):
        trajectory = tokenized.trajectories[n]
        rewards = _turn_rewards(trajectory, [turn for turn, _ in turns], config)
        returns = compute_turn_returns(rewards, gamma_turn=config.algorithm.gamma_turn)
        in_row_order = sorted(zip(turns, returns, strict=True), key=lambda item: item[0][1])
        returns_K += [value for _, value in in_row_order]
        groups_K += [int(group_of_N[n])] * len(turns)
        usable_K += [trajectory.end != "truncated"] * len(turns)
    return fit_turn_values(
        features_KH,
        torch.tensor(returns_K),
        torch.tensor(groups_K),
        torch.tensor(usable_K),
    )


def _compute_features(
    tokenized: TokenizedTrajectories, config: RunConfig, policy: Policy
) -> Tensor:
    """Hidden states at every turn start; each rank computes some, and has all in the end."""
    features_R: list[Tensor] = [torch.empty(0)] * len(tokenized.rows)
    owner_of = {r: n for n, rows in enumerate(tokenized.rows_of_N) for r in rows}
    counts_R = [int(row.turn_start_mask_T.sum()) for row in tokenized.rows]
    num_hidden = 0
    for chosen, batch in pack_all(
        tokenized.rows,
        range(len(tokenized.rows)),
        tokens_per_pack=policy.limit_pack(config.train.tokens_per_pack),
        shared_up_to=policy.shared_up_to,
        ranks=policy.ranks,
    ):
        with explain_out_of_memory(
            batch, lambda r: tokenized.trajectories[owner_of[r]].trajectory_id
        ):
            features_SH = policy.compute_state_features(batch).cpu()
        num_hidden = features_SH.shape[1]
        counts = [counts_R[r] for r in chosen]
        for r, features in zip(chosen, features_SH.split(counts) if counts else (), strict=True):
            features_R[r] = features
    if policy.ranks.size == 1:
        return torch.cat(features_R)
    zeros_R = [torch.zeros(count, num_hidden) for count in counts_R]
    own_R = [f if len(f) else zeros for f, zeros in zip(features_R, zeros_R, strict=True)]
    return policy.ranks.sum_tensor(torch.cat(own_R))


def _bilevel_advantages(
    tokenized: TokenizedTrajectories, critic_values_K: Tensor, config: RunConfig
) -> list[np.ndarray]:
    """Turn-level GAE, spread over each turn's tokens.

    The critic's value is constant within a turn, so the low level (gamma = lambda = 1) hands
    every token of a turn the turn's advantage.
    """
    turn_advantages_K = torch.zeros_like(critic_values_K)
    for trajectory, turns in zip(tokenized.trajectories, _turns_of(tokenized), strict=True):
        at = torch.tensor([position for _, position in turns])
        values = critic_values_K[at]
        rewards = _turn_rewards(trajectory, [turn for turn, _ in turns], config)
        turn_advantages_K[at] = compute_turn_advantages(
            torch.tensor(rewards, dtype=torch.float64),
            values,
            gamma_turn=config.algorithm.gamma_turn,
            lam=config.algorithm.lambda_,
            # the last state the critic has seen stands for the one at the cut
            bootstrap_value=float(values[-1]) if trajectory.end == "truncated" else 0.0,
        )
    spread, first = [], 0
    for row in tokenized.rows:
        turn_of_A = row.turn_T[row.action_mask_T]
        _, index_of_A = np.unique(turn_of_A, return_inverse=True)
        spread.append(turn_advantages_K[first + torch.from_numpy(index_of_A)])
        first += int(row.turn_start_mask_T.sum())
    return [part.numpy() for part in spread]


def _whiten(advantages_R: list[np.ndarray]) -> list[np.ndarray]:
    if not advantages_R:
        return []
    flat = torch.from_numpy(np.concatenate(advantages_R))
    white = whiten_masked(flat, torch.ones_like(flat, dtype=torch.bool)).to(torch.float32)
    return [part.numpy() for part in white.split([len(part) for part in advantages_R])]


def _turns_of(tokenized: TokenizedTrajectories) -> list[list[tuple[int, int]]]:
    """Trained turns of each trajectory in order: (turn, its position in K)."""
    turns_N, first = [], 0
    for rows in tokenized.rows_of_N:
        turns = []
        for row in (tokenized.rows[r] for r in rows):
            for turn in np.unique(row.turn_T[row.action_mask_T]):
                turns.append((int(turn), first))
                first += 1
        turns_N.append(sorted(turns))
    return turns_N


def _turn_rewards(trajectory: Trajectory, turns: list[int], config: RunConfig) -> list[float]:
    """Weighted process rewards and shaping, and the outcome at the last trained turn."""
    own = {turn.turn: turn.reward or 0.0 for turn in trajectory.turns}
    weight = config.algorithm.process_reward_weight
    rewards = [weight * own[turn] for turn in turns]
    if config.algorithm.shaping_weight:
        shaping = _shaping(trajectory)
        for i, turn in enumerate(turns):
            rewards[i] += config.algorithm.shaping_weight * shaping[turn]
    rewards[-1] += _reward(trajectory)
    return rewards


def _shaping(trajectory: Trajectory) -> dict[int, float]:
    shaping = {turn.turn: turn.shaping for turn in trajectory.turns}
    known = {turn: value for turn, value in shaping.items() if value is not None}
    if len(known) < len(shaping):
        lacking = next(turn for turn in shaping if turn not in known)
        raise DataError(
            f"trajectory {trajectory.trajectory_id}, turn {lacking}: has no shaping, but "
            "algorithm.shaping_weight is set; export with a recipe that has [shaping.NAME], with "
            "`missing = 0` where nothing is meant to be 0."
        )
    return known


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise DataError(f"trajectory {trajectory.trajectory_id} has no reward.")
    return trajectory.reward


def keep_trajectories(
    tokenized: TokenizedTrajectories, advantages_R: list[np.ndarray], kept_N: list[bool]
) -> tuple[TokenizedTrajectories, list[np.ndarray]]:
    """Some of the trajectories, their rows, and what there is for each row."""
    kept = TokenizedTrajectories(trajectories=[], rows=[], rows_of_N=[])
    advantages = []
    for n, rows in enumerate(tokenized.rows_of_N):
        if not kept_N[n]:
            continue
        kept.rows_of_N.append(list(range(len(kept.rows), len(kept.rows) + len(rows))))
        kept.rows += [tokenized.rows[r] for r in rows]
        kept.trajectories.append(tokenized.trajectories[n])
        advantages += [advantages_R[r] for r in rows] if advantages_R else []
    return kept, advantages
