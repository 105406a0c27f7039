"""Worlds whose values are known exactly, and runs recorded in them.

Tasks are drawn afresh for each repetition and attempted several times each, so that attempts at one
task are alike: a task is a context of the bandit, a start cell of the lake.
Suffixes: S states, A actions, N trajectories, K turns, M turns of all trajectories.
"""

from dataclasses import dataclass

import numpy as np
import torch

from starpo_train.ope.evaluation import LoggedTurns
from starpo_train.ope.fqe import Transitions

LAKE = ("SFF", "FFH", "HFG")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A finite decision process and two policies of it."""

    name: str
    moves_SAS: np.ndarray
    """Chance of each next state."""
    rewards_SAS: np.ndarray
    """Chance that a move earns 1."""
    is_end_S: np.ndarray
    starts_S: np.ndarray
    """Chance that a task starts there."""
    behaviour_SA: np.ndarray
    policy_SA: np.ndarray

    def compute_value(self, policy_SA: np.ndarray) -> float:
        """Expected reward of a policy: the linear equations V = sum_a pi (r + P V), solved."""
        rewards_SA = (self.moves_SAS * self.rewards_SAS).sum(2)
        earned_S = (policy_SA * rewards_SA).sum(1)
        moved_SS = np.einsum("sa,sat->st", policy_SA, self.moves_SAS)
        going = ~self.is_end_S
        left = np.eye(int(going.sum())) - moved_SS[np.ix_(going, going)]
        values_S = np.zeros(len(earned_S))
        values_S[going] = np.linalg.solve(left, earned_S[going])
        return float(self.starts_S @ values_S)

    def play(
        self, generator: np.random.Generator, *, num_tasks: int, attempts: int
    ) -> tuple[LoggedTurns, Transitions]:
        """Runs of the behaviour policy, with what the other policy would have done beside them."""
        starts = generator.choice(len(self.starts_S), size=num_tasks, p=self.starts_S)
        state_N = np.repeat(starts, attempts)
        alive_N = ~self.is_end_S[state_N]
        columns: list[tuple[np.ndarray, ...]] = []
        while alive_N.any():
            action_N = _draw(generator, self.behaviour_SA[state_N])
            next_N = _draw(generator, self.moves_SAS[state_N, action_N])
            chance_N = self.rewards_SAS[state_N, action_N, next_N]
            reward_N = (generator.random(len(state_N)) < chance_N) * alive_N
            columns.append((state_N, action_N, reward_N.astype(np.float64), alive_N))
            state_N = np.where(alive_N, next_N, state_N)
            alive_N = alive_N & ~self.is_end_S[state_N]
        state_NK, action_NK, reward_NK, mask_NK = (
            np.stack(column, axis=1) for column in zip(*columns, strict=True)
        )
        with np.errstate(divide="ignore"):
            log_ratio_SA = np.log(self.policy_SA) - np.log(self.behaviour_SA)
        logged = LoggedTurns(
            rewards_NK=torch.from_numpy(reward_NK),
            mask_NK=torch.from_numpy(mask_NK),
            cluster_of_N=torch.arange(num_tasks).repeat_interleave(attempts),
            log_ratios_NK=torch.from_numpy(np.where(mask_NK, log_ratio_SA[state_NK, action_NK], 0)),
            provenance="exact",
        )
        return logged, self._list_transitions(state_NK[mask_NK], action_NK[mask_NK], logged)

    def _list_transitions(
        self, state_M: np.ndarray, action_M: np.ndarray, logged: LoggedTurns
    ) -> Transitions:
        """One feature for each state and action."""
        num_states, num_actions = self.policy_SA.shape
        turn_M = np.arange(len(state_M))
        taken_MSA = np.zeros((len(state_M), num_states, num_actions))
        taken_MSA[turn_M, state_M, action_M] = 1
        expected_MSA = np.zeros_like(taken_MSA)
        expected_MSA[turn_M, state_M] = self.policy_SA[state_M]
        of_NK = torch.arange(len(logged.mask_NK))[:, None].expand(logged.mask_NK.shape)
        going = ~self.is_end_S
        return Transitions(
            taken_MH=torch.from_numpy(taken_MSA[:, going].reshape(len(state_M), -1)),
            expected_MH=torch.from_numpy(expected_MSA[:, going].reshape(len(state_M), -1)),
            rewards_M=logged.rewards_NK[logged.mask_NK],
            trajectory_of_M=of_NK[logged.mask_NK],
        )


def make_bandit(*, sharpness: float, name: str = "bandit") -> World:
    """Five contexts, four answers of known success; recorded at random, wanted softmax."""
    fixed = np.random.default_rng(1)
    preferences_SA = fixed.normal(size=(5, 4))
    success_SA = fixed.uniform(0.1, 0.9, size=(5, 4))
    moves_SAS = np.zeros((6, 4, 6))
    moves_SAS[..., 5] = 1.0
    rewards_SAS = np.zeros_like(moves_SAS)
    rewards_SAS[:5, :, 5] = success_SA
    padded_SA = np.concatenate([preferences_SA, np.zeros((1, 4))])
    return World(
        name=name,
        moves_SAS=moves_SAS,
        rewards_SAS=rewards_SAS,
        is_end_S=np.arange(6) == 5,
        starts_S=np.array([0.2] * 5 + [0.0]),
        behaviour_SA=np.full((6, 4), 0.25),
        policy_SA=_soften(padded_SA, sharpness),
    )


def make_lake(*, behaviour: float, sharpness: float, name: str = "lake") -> World:
    """Slippery FrozenLake, gymnasium's own dynamics; softmax policies of its optimal Q.

    Sharpness 0 walks at random; the larger, the nearer to optimal.
    """
    import gymnasium

    cells = "".join(LAKE)
    lake = gymnasium.make("FrozenLake-v1", desc=list(LAKE), is_slippery=True).unwrapped
    moves_SAS = np.zeros((len(cells), 4, len(cells)))
    rewards_SAS = np.zeros_like(moves_SAS)
    for state, actions in lake.P.items():  # pyright: ignore[reportAttributeAccessIssue]
        for action, outcomes in actions.items():
            for chance, following, reward, _ in outcomes:
                moves_SAS[state, action, following] += chance
                rewards_SAS[state, action, following] = reward
    is_end_S = np.array([cell in "HG" for cell in cells])
    best_SA = _find_best(moves_SAS, rewards_SAS, is_end_S)
    return World(
        name=name,
        moves_SAS=moves_SAS,
        rewards_SAS=rewards_SAS,
        is_end_S=is_end_S,
        starts_S=~is_end_S / (~is_end_S).sum(),
        behaviour_SA=_soften(best_SA, behaviour),
        policy_SA=_soften(best_SA, sharpness),
    )


def _find_best(
    moves_SAS: np.ndarray, rewards_SAS: np.ndarray, is_end_S: np.ndarray, *, gamma: float = 0.95
) -> np.ndarray:
    best_SA = np.zeros(moves_SAS.shape[:2])
    for _ in range(400):
        values_S = np.where(is_end_S, 0.0, best_SA.max(1))
        best_SA = (moves_SAS * (rewards_SAS + gamma * values_S)).sum(2)
    return best_SA


def _soften(preferences_SA: np.ndarray, sharpness: float) -> np.ndarray:
    weights_SA = np.exp(sharpness * (preferences_SA - preferences_SA.max(1, keepdims=True)))
    return weights_SA / weights_SA.sum(1, keepdims=True)


def _draw(generator: np.random.Generator, chances_NX: np.ndarray) -> np.ndarray:
    drawn_N = (generator.random(len(chances_NX))[:, None] > chances_NX.cumsum(1)).sum(1)
    return drawn_N.clip(0, chances_NX.shape[1] - 1)
