"""Trajectories, rewards and values -> the advantages of the run's estimator.

Suffixes: N trajectories, K turns (in row order), A trained tokens of all rows, T those of one
trajectory in the order of time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from starpo_train.config import RunConfig
from starpo_train.credit.anchors import read_anchors
from starpo_train.credit.bilevel_gae import compute_turn_advantages
from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.gae import compute_gae, compute_returns
from starpo_train.credit.gdpo import compute_gdpo_advantages
from starpo_train.credit.gigpo import compute_gigpo_advantages
from starpo_train.credit.grpo import compute_grpo_advantages
from starpo_train.credit.maxrl import compute_maxrl_advantages
from starpo_train.credit.reinforce_pp import (
    compute_reinforce_pp_advantages,
    compute_reinforce_pp_baseline_advantages,
)
from starpo_train.credit.rloo import compute_rloo_advantages
from starpo_train.credit.turns import (
    TokenizedTrajectories,
    TurnLayout,
    compute_turn_rewards,
    read_reward,
)
from starpo_train.credit.values import spread_rewards
from starpo_train.credit.whiten import whiten_masked
from starpo_train.dataset import Trajectory
from starpo_train.errors import ConfigError, DataError

Estimator = Callable[[TokenizedTrajectories, TurnLayout, RunConfig, Tensor | None], Tensor]

COMPARED_BY_TASK = frozenset(
    {"grpo", "dr_grpo", "rloo", "maxrl", "gdpo", "reinforce_pp_baseline", "gigpo"}
)
"""Advantages that compare attempts at the same task and nothing else."""
WHITENED_BY_TOKEN = frozenset({"reinforce_pp", "reinforce_pp_baseline", "gae", "bilevel_gae"})

_OF_ONE_REWARD = {
    "grpo": compute_grpo_advantages,
    "dr_grpo": compute_dr_grpo_advantages,
    "rloo": compute_rloo_advantages,
    "maxrl": compute_maxrl_advantages,
}


def compute_token_advantages(
    tokenized: TokenizedTrajectories,
    layout: TurnLayout,
    config: RunConfig,
    *,
    values_K: Tensor | None,
) -> Tensor:
    """float64 [A], whitened where the estimator whitens.

    Raises:
        DataError: rewards or messages that the estimator needs were not recorded.
    """
    name = config.algorithm.advantage
    if name in _BY_TOKEN:
        return _BY_TOKEN[name](tokenized, layout, config, values_K)
    values_N = None if values_K is None else pick_first_values(layout, values_K)
    advantages_N = compute_trajectory_advantages(tokenized, config, values_N=values_N)
    return advantages_N[layout.trajectory_of_K].repeat_interleave(layout.num_tokens_K)


def compute_trajectory_advantages(
    tokenized: TokenizedTrajectories, config: RunConfig, *, values_N: Tensor | None = None
) -> Tensor:
    """float64 [N]: one advantage per trajectory, of the estimators that have one.

    `values_N` are the critic's of each first turn, for `singleton = "learned_value"`.

    Raises:
        ConfigError: the run's estimator has one per token or turn.
    """
    algorithm = config.algorithm
    if algorithm.advantage == "gdpo":
        rewards_NM, weights_M = read_reward_vectors(tokenized.trajectories)
        singleton = algorithm.singleton
        return compute_gdpo_advantages(
            rewards_NM, list_tasks(tokenized), weights_M, singleton=singleton
        )
    compute = _OF_ONE_REWARD.get(algorithm.advantage)
    if compute is None:
        raise ConfigError(
            f"algorithm.advantage = {algorithm.advantage!r}: has no advantage per trajectory; choose "
            f"one of {', '.join((*_OF_ONE_REWARD, 'gdpo'))}."
        )
    return compute(
        read_rewards(tokenized),
        list_tasks(tokenized),
        singleton=algorithm.singleton,
        values_N=values_N,
    )


def compute_turn_gae(
    tokenized: TokenizedTrajectories, layout: TurnLayout, config: RunConfig, values_K: Tensor
) -> Tensor:
    """float64 [K]: bi-level GAE's high level, before whitening.

    The critic's value is constant within a turn, so the low level (gamma = lambda = 1) hands
    every token of a turn the turn's advantage.
    """
    advantages_K = torch.zeros_like(values_K)
    for n, trajectory in enumerate(tokenized.trajectories):
        places = layout.places_N[n]
        advantages_K[places] = compute_turn_advantages(
            _list_turn_rewards(trajectory, layout, n, config),
            values_K[places],
            gamma_turn=config.algorithm.gamma_turn,
            lam=config.algorithm.lambda_,
            bootstrap_value=_find_bootstrap(trajectory, values_K[places]),
        )
    return advantages_K


def pick_first_values(layout: TurnLayout, values_K: Tensor) -> Tensor:
    """The critic's value of each trajectory's first turn, [N]."""
    return values_K[[int(places[0]) for places in layout.places_N]]


def read_rewards(tokenized: TokenizedTrajectories) -> Tensor:
    """float64 [N]."""
    return torch.tensor([read_reward(t) for t in tokenized.trajectories], dtype=torch.float64)


def list_tasks(tokenized: TokenizedTrajectories) -> list[str | None]:
    """[N]: None for a trajectory that names no task."""
    return [t.task_id or None for t in tokenized.trajectories]


def read_reward_vectors(trajectories: list[Trajectory]) -> tuple[Tensor, Tensor]:
    """Named rewards and their weights, float64 [N, M] and [M], in the order of the names.

    Raises:
        DataError: there are none, or not every trajectory has the same, with the same weights.
    """
    if not trajectories:
        return torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    names = sorted({name for t in trajectories for name in t.rewards})
    if not names:
        raise DataError(
            f"trajectory {trajectories[0].trajectory_id} has no reward with a name, and "
            "algorithm.advantage = 'gdpo' takes them one by one; record some or choose 'grpo'."
        )
    weights = {name: _find_weight(trajectories[0], name) for name in names}
    for trajectory in trajectories:
        for name in names:
            fault = None
            if name not in trajectory.rewards:
                fault = "has no value"
            elif _find_weight(trajectory, name) != weights[name]:
                fault = f"has weight {_find_weight(trajectory, name):g}, not {weights[name]:g}"
            if fault is not None:
                raise DataError(
                    f"trajectory {trajectory.trajectory_id}: reward {name!r} {fault}, and "
                    "algorithm.advantage = 'gdpo' needs all of them of every trajectory; export with "
                    "a recipe that names the rewards, with `missing = 0` where that is meant."
                )
    rewards = [[t.rewards[name] for name in names] for t in trajectories]
    weights_M = torch.tensor([weights[name] for name in names], dtype=torch.float64)
    return torch.tensor(rewards, dtype=torch.float64), weights_M


def _find_weight(trajectory: Trajectory, name: str) -> float:
    return trajectory.reward_weights.get(name, 1.0)


def _list_turn_rewards(
    trajectory: Trajectory, layout: TurnLayout, n: int, config: RunConfig
) -> Tensor:
    rewards = compute_turn_rewards(trajectory, layout.list_turns(n), config.algorithm)
    return torch.tensor(rewards, dtype=torch.float64)


def _find_bootstrap(trajectory: Trajectory, values: Tensor) -> float:
    """The last state the critic has seen stands for the one at the cut."""
    return float(values[-1]) if trajectory.end == "truncated" else 0.0


def _compute_bilevel(
    tokenized: TokenizedTrajectories, layout: TurnLayout, config: RunConfig, values_K: Tensor | None
) -> Tensor:
    turn_advantages_K = compute_turn_gae(tokenized, layout, config, _require_values(values_K))
    return _whiten(turn_advantages_K.repeat_interleave(layout.num_tokens_K))


def _compute_gae(
    tokenized: TokenizedTrajectories, layout: TurnLayout, config: RunConfig, values_K: Tensor | None
) -> Tensor:
    """Token GAE; a value at every token of a turn is that of the turn's start."""
    values_K = _require_values(values_K)
    advantages_A = torch.zeros(int(layout.num_tokens_K.sum()), dtype=torch.float64)
    for n, trajectory in enumerate(tokenized.trajectories):
        values, counts = values_K[layout.places_N[n]], layout.num_tokens_K[layout.places_N[n]]
        rewards = _list_turn_rewards(trajectory, layout, n, config)
        advantages_A[layout.list_tokens(n)] = compute_gae(
            spread_rewards(rewards, counts),
            values.repeat_interleave(counts),
            gamma=config.algorithm.gamma_token,
            lam=config.algorithm.lambda_,
            bootstrap_value=_find_bootstrap(trajectory, values),
        )[0]
    return _whiten(advantages_A)


def _compute_reinforce_pp(
    tokenized: TokenizedTrajectories, layout: TurnLayout, config: RunConfig, values_K: Tensor | None
) -> Tensor:
    del values_K
    rewards, places = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
    for n, trajectory in enumerate(tokenized.trajectories):
        own = _list_turn_rewards(trajectory, layout, n, config)
        rewards.append(spread_rewards(own, layout.num_tokens_K[layout.places_N[n]]))
        places.append(layout.list_tokens(n))
    advantages_A = torch.zeros(int(layout.num_tokens_K.sum()), dtype=torch.float64)
    advantages_A[torch.cat(places)] = compute_reinforce_pp_advantages(
        torch.cat(rewards), [len(part) for part in places], gamma=config.algorithm.gamma_token
    )
    return advantages_A


def _compute_reinforce_pp_baseline(
    tokenized: TokenizedTrajectories, layout: TurnLayout, config: RunConfig, values_K: Tensor | None
) -> Tensor:
    counts_N = [int(layout.num_tokens_K[places].sum()) for places in layout.places_N]
    return compute_reinforce_pp_baseline_advantages(
        read_rewards(tokenized),
        list_tasks(tokenized),
        counts_N,
        singleton=config.algorithm.singleton,
        values_N=None if values_K is None else pick_first_values(layout, values_K),
    )


def _compute_gigpo(
    tokenized: TokenizedTrajectories, layout: TurnLayout, config: RunConfig, values_K: Tensor | None
) -> Tensor:
    returns_K = torch.zeros(len(layout.turn_K), dtype=torch.float64)
    for n, trajectory in enumerate(tokenized.trajectories):
        rewards = _list_turn_rewards(trajectory, layout, n, config)
        returns_K[layout.places_N[n]] = compute_returns(rewards, gamma=config.algorithm.gamma_turn)
    episode_N = compute_dr_grpo_advantages(
        read_rewards(tokenized),
        list_tasks(tokenized),
        singleton=config.algorithm.singleton,
        values_N=None if values_K is None else pick_first_values(layout, values_K),
    )
    advantages_K = compute_gigpo_advantages(
        episode_N,
        list_tasks(tokenized),
        returns_K,
        layout.trajectory_of_K,
        read_anchors(tokenized, layout, config.data.dataset),
        omega=config.algorithm.gigpo_omega,
    )
    return advantages_K.repeat_interleave(layout.num_tokens_K)


_BY_TOKEN: dict[str, Estimator] = {
    "bilevel_gae": _compute_bilevel,
    "gae": _compute_gae,
    "reinforce_pp": _compute_reinforce_pp,
    "reinforce_pp_baseline": _compute_reinforce_pp_baseline,
    "gigpo": _compute_gigpo,
}


def _require_values(values_K: Tensor | None) -> Tensor:
    if values_K is None:
        raise ValueError("values_K is None; a critic has to be fitted first.")
    return values_K


def _whiten(advantages_A: Tensor) -> Tensor:
    """Over what is trained: what was left out is not there."""
    return whiten_masked(advantages_A, torch.ones_like(advantages_A, dtype=torch.bool))
