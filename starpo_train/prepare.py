"""Dataset + run configuration -> TrainingData: rows of tokens with an advantage on each.

Everything is computed once, before the first step: the behaviour policy is fixed, so are its
rewards, its log-probabilities and its value function.

Suffixes: N trajectories, R rows, K turns (in row order), A trained tokens of a row.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import RunConfig
from starpo_train.credit.bilevel_gae import compute_turn_advantages, whiten_masked
from starpo_train.credit.group import compute_group_advantages, select_groups
from starpo_train.critic import compute_turn_returns, fit_turn_values
from starpo_train.dataset import Manifest, Trajectory, read_manifest, read_message_graphs
from starpo_train.dataset import read_trajectories as read_dataset_trajectories
from starpo_train.errors import DataError
from starpo_train.model import Policy
from starpo_train.pack import pack_rows, plan_packs
from starpo_train.provenance import Choice, choose_algorithm, describe_data, explain_inexact
from starpo_train.render import render_turns, require_chat_template
from starpo_train.tokens import TokenSequence, TurnTokens, tokenize_trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What the training loop goes through."""

    manifest: Manifest
    choice: Choice
    """Algorithm that runs and why."""
    trajectory_ids_N: list[str]
    rows: list[TokenSequence]
    rows_of_N: list[list[int]]
    """Rows of each trajectory; branches make it more than one."""
    advantages_R: list[np.ndarray]
    """float32 [A] per row; empty list for filtered BC."""
    critic_values_K: Tensor | None
    """Value of each turn start, kept so that a resumed run has the same."""
    facts: dict[str, Any]
    """Counts for the first metrics record."""

    def weight_sum(self, trajectory: int) -> float:
        """Summed weight of a trajectory's trained tokens."""
        rows = (self.rows[row] for row in self.rows_of_N[trajectory])
        return sum(row.weight * row.num_actions for row in rows)


@dataclass(slots=True, kw_only=True)
class _Tokenized:
    trajectories: list[Trajectory]
    rows: list[TokenSequence]
    rows_of_N: list[list[int]]


def prepare_training_data(
    config: RunConfig, policy: Policy, *, critic_values_K: Tensor | None = None
) -> TrainingData:
    """Read, judge, tokenize, assign credit.

    Raises:
        DataError: no dataset, an empty split, no rewards, nothing left to train on.
        ProvenanceError: the algorithm is not legal for the data.
        ModelError: messages must be rendered and the model has no chat template.
    """
    algorithm = config.algorithm
    everything = read_dataset_trajectories(config.data.dataset, split=config.data.split)
    trajectories = [
        t for t in everything if config.data.truncated == "keep" or t.end != "truncated"
    ]
    left_out: Counter[str] = Counter()
    left_out["truncated"] += len(everything) - len(trajectories)
    facts = describe_data(trajectories, models=config.data.models)
    choice = choose_algorithm(
        algorithm.name,
        facts,
        needs_groups=algorithm.advantage == "group" and algorithm.singleton == "drop",
    )
    chosen = _select(trajectories, choice.algorithm, config, left_out)
    tokenized = _tokenize(chosen, config, policy, left_out)
    summary: dict[str, Any] = {}
    advantages_R: list[np.ndarray] = []
    if choice.algorithm == "starpo":
        tokenized, advantages_R, critic_values_K = _assign_credit(
            tokenized, config, policy, critic_values_K, summary
        )
    if not tokenized.rows:
        raise DataError(f"{config.data.dataset}: nothing left to train on ({dict(left_out)}).")
    summary |= {
        "algorithm": choice.algorithm,
        "algorithm_reason": choice.reason,
        "num_trajectories": len(tokenized.trajectories),
        "num_trajectories_read": len(everything),
        "num_rows": len(tokenized.rows),
        "num_tokens": sum(row.num_tokens for row in tokenized.rows),
        "num_action_tokens": sum(row.num_actions for row in tokenized.rows),
        "num_retokenized_rows": sum(not row.recorded for row in tokenized.rows),
        "reward_mean": float(np.mean([t.reward for t in trajectories if t.reward is not None])),
        "left_out": {reason: count for reason, count in left_out.items() if count},
    }
    return TrainingData(
        manifest=read_manifest(config.data.dataset),
        choice=choice,
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        advantages_R=advantages_R,
        critic_values_K=critic_values_K,
        facts=summary,
    )


def _select(
    trajectories: list[Trajectory], algorithm: str, config: RunConfig, left_out: Counter[str]
) -> list[Trajectory]:
    chosen = []
    threshold = config.algorithm.reward_threshold
    if threshold is None:
        rewards = [t.reward for t in trajectories if t.reward is not None]
        threshold = (min(rewards) + max(rewards)) / 2
    for trajectory in trajectories:
        if trajectory.reward is None:
            reason = "no_reward"
        elif algorithm == "starpo":
            reason = explain_inexact(trajectory, models=config.data.models)
        elif trajectory.usable_for == "none":
            reason = trajectory.reasons[0] if trajectory.reasons else "not_usable"
        else:
            reason = "below_threshold" if trajectory.reward < threshold else None
        if reason is None:
            chosen.append(trajectory)
        else:
            left_out[reason] += 1
    if not chosen:
        raise DataError(
            f"{config.data.dataset}: no trajectory is left for {algorithm} ({dict(left_out)}); "
            "lower algorithm.reward_threshold or record more."
        )
    return chosen


def _tokenize(
    trajectories: list[Trajectory], config: RunConfig, policy: Policy, left_out: Counter[str]
) -> _Tokenized:
    missing = [
        t.trajectory_id for t in trajectories if any(u.response_ids_T is None for u in t.turns)
    ]
    graphs = {}
    if missing:
        require_chat_template(policy.tokenizer, model_path=config.model.path)
        graphs = read_message_graphs(config.data.dataset, missing)

    def render(position: int) -> Sequence[TurnTokens | None]:
        trajectory = trajectories[position]
        graph = graphs.get(trajectory.trajectory_id, {})
        return render_turns(trajectory, graph, policy.tokenizer, models=config.data.models)

    longest = getattr(policy.model.config, "max_position_embeddings", None) or 1 << 62
    kept = _Tokenized(trajectories=[], rows=[], rows_of_N=[])
    for position, trajectory in enumerate(trajectories):
        rows = tokenize_trajectory(
            trajectory, position=position, render=render, models=config.data.models
        )
        if not rows or any(row.num_tokens > longest for row in rows):
            left_out["too_long_for_model" if rows else "no_tokens"] += 1
            continue
        _check_vocabulary(rows, trajectory, policy, config)
        kept.rows_of_N.append(list(range(len(kept.rows), len(kept.rows) + len(rows))))
        kept.rows += rows
        kept.trajectories.append(trajectory)
    return kept


def _check_vocabulary(
    rows: list[TokenSequence], trajectory: Trajectory, policy: Policy, config: RunConfig
) -> None:
    highest = max(int(row.input_ids_T.max()) for row in rows)
    if highest >= policy.num_vocabulary:
        raise DataError(
            f"trajectory {trajectory.trajectory_id}: token id {highest} is outside the vocabulary "
            f"of {config.model.path!r} ({policy.num_vocabulary} ids); train the model that was "
            "recorded, or one with its tokenizer."
        )


def _assign_credit(
    tokenized: _Tokenized,
    config: RunConfig,
    policy: Policy,
    critic_values_K: Tensor | None,
    summary: dict[str, Any],
) -> tuple[_Tokenized, list[np.ndarray], Tensor | None]:
    """Rows that can teach something, with an advantage per trained token."""
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
    summary |= {
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
        kept_N &= groups.advantages_N != 0  # an advantage of 0 has no gradient
    else:
        if critic_values_K is None:
            critic_values_K = _fit_critic(tokenized, groups.group_of_N, config, policy, summary)
        advantages_R = _bilevel_advantages(tokenized, critic_values_K, config)
    return *_keep(tokenized, advantages_R, kept_N.tolist()), critic_values_K


def _fit_critic(
    tokenized: _Tokenized,
    group_of_N: Tensor,
    config: RunConfig,
    policy: Policy,
    summary: dict[str, Any],
) -> Tensor:
    """Values of all turn starts, turns in row order."""
    features_R: list[Tensor] = [torch.empty(0)] * len(tokenized.rows)
    lengths = [row.num_tokens for row in tokenized.rows]
    for chosen in plan_packs(lengths, tokens_per_pack=config.train.tokens_per_pack):
        features_SH = policy.compute_state_features(pack_rows(tokenized.rows, chosen)).cpu()
        counts = [int(tokenized.rows[r].turn_start_mask_T.sum()) for r in chosen]
        for r, features in zip(chosen, features_SH.split(counts), strict=True):
            features_R[r] = features
    returns_K, groups_K, usable_K = [], [], []
    for n, turns in enumerate(_turns_of(tokenized)):
        trajectory = tokenized.trajectories[n]
        rewards = _turn_rewards(trajectory, [turn for turn, _ in turns], config)
        returns = compute_turn_returns(rewards, gamma_turn=config.algorithm.gamma_turn)
        in_row_order = sorted(zip(turns, returns, strict=True), key=lambda item: item[0][1])
        returns_K += [value for _, value in in_row_order]
        groups_K += [int(group_of_N[n])] * len(turns)
        usable_K += [trajectory.end != "truncated"] * len(turns)
    values = fit_turn_values(
        torch.cat(features_R),
        torch.tensor(returns_K),
        torch.tensor(groups_K),
        torch.tensor(usable_K),
    )
    summary["critic_explained_variance"] = values.explained_variance
    return values.values_K


def _bilevel_advantages(
    tokenized: _Tokenized, critic_values_K: Tensor, config: RunConfig
) -> list[np.ndarray]:
    """Turn-level GAE, spread over each turn's tokens, whitened over all tokens.

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
    flat = torch.cat(spread)
    white = whiten_masked(flat, torch.ones_like(flat, dtype=torch.bool)).to(torch.float32)
    return [part.numpy() for part in white.split([len(part) for part in spread])]


def _turns_of(tokenized: _Tokenized) -> list[list[tuple[int, int]]]:
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
    """Weighted process rewards, and the outcome at the last trained turn."""
    own = {turn.turn: turn.reward or 0.0 for turn in trajectory.turns}
    weight = config.algorithm.process_reward_weight
    rewards = [weight * own[turn] for turn in turns]
    rewards[-1] += _reward(trajectory)
    return rewards


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise DataError(f"trajectory {trajectory.trajectory_id} has no reward.")
    return trajectory.reward


def _keep(
    tokenized: _Tokenized, advantages_R: list[np.ndarray], kept_N: list[bool]
) -> tuple[_Tokenized, list[np.ndarray]]:
    kept = _Tokenized(trajectories=[], rows=[], rows_of_N=[])
    advantages = []
    for n, rows in enumerate(tokenized.rows_of_N):
        if not kept_N[n]:
            continue
        kept.rows_of_N.append(list(range(len(kept.rows), len(kept.rows) + len(rows))))
        kept.rows += [tokenized.rows[r] for r in rows]
        kept.trajectories.append(tokenized.trajectories[n])
        advantages += [advantages_R[r] for r in rows]
    return kept, advantages
