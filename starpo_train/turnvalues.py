"""Trajectories + a model folder -> the critic's value of every turn start, by trajectory and turn.

Suffixes: R rows, K turns (in row order), S turn starts of a pack, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import ModelSection
from starpo_train.credit.critic import compute_turn_returns, fit_turn_values
from starpo_train.dataset import Trajectory, read_message_graphs
from starpo_train.errors import DataError
from starpo_train.model import load_policy
from starpo_train.pack import pack_all
from starpo_train.policy import Policy
from starpo_train.render import TurnRenderer
from starpo_train.tokens import TokenSequence, tokenize_trajectory
from starpo_train.turncredit import CreditRule, list_turn_rewards

TOKENS_PER_PACK = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticValues:
    """What the critic expects at the turn starts it has seen."""

    values: dict[tuple[str, int], float]
    """By trajectory id and turn."""
    explained_variance: float
    """On held-out tasks; nan without variance."""
    num_left_out: int
    """Trajectories without tokens that the model could read."""


def estimate_turn_values(
    dataset: Path,
    trajectories: Sequence[Trajectory],
    model_path: str,
    rule: CreditRule,
    *,
    section: ModelSection | None = None,
) -> CriticValues:
    """Fit the turn critic of `credit/critic.py` on a model's hidden states.

    Raises:
        DataError: no trajectory has a reward and tokens that the model can read.
        ModelError: the folder is no model, or lacks a chat template that is needed.
    """
    policy = load_policy(section or ModelSection(path=model_path))
    known = [t for t in trajectories if t.reward is not None]
    rows_of = _tokenize(dataset, known, policy, model_path)
    rows = [row for found in rows_of for row in found]
    if not rows:
        raise DataError(
            f"{dataset}: none of {len(trajectories)} trajectories has a reward and tokens that "
            f"{model_path} can read; `starpo-train explain DATASET --model PATH` says why."
        )
    features_KH = _compute_features(rows, policy)
    keys, returns, groups, usable = [], [], [], []
    tasks: dict[str, int] = {}
    for trajectory, found in zip(known, rows_of, strict=True):
        turns_of_rows = [turn for row in found for turn in _list_turns(row)]
        if not turns_of_rows:
            continue
        turns = sorted(turns_of_rows)
        rewards = list_turn_rewards(trajectory, turns, rule)
        return_of = dict(
            zip(turns, compute_turn_returns(rewards, gamma_turn=rule.gamma), strict=True)
        )
        task = trajectory.task_id or f"run:{trajectory.trajectory_id}"
        keys += [(trajectory.trajectory_id, turn) for turn in turns_of_rows]
        returns += [return_of[turn] for turn in turns_of_rows]
        groups += [tasks.setdefault(task, len(tasks))] * len(turns)
        usable += [trajectory.end != "truncated"] * len(turns)
    fit = fit_turn_values(
        features_KH,
        torch.tensor(returns, dtype=torch.float64),
        torch.tensor(groups),
        torch.tensor(usable),
    )
    return CriticValues(
        values=dict(zip(keys, fit.values_K.tolist(), strict=True)),
        explained_variance=fit.explained_variance,
        num_left_out=sum(not found for found in rows_of),
    )


def _tokenize(
    dataset: Path, trajectories: Sequence[Trajectory], policy: Policy, model_path: str
) -> list[list[TokenSequence]]:
    """Rows of each trajectory; none where the template refuses it or it is too long."""
    missing = [t.trajectory_id for t in trajectories if t.lacks_ids()]
    renderer = TurnRenderer(policy.tokenizer, model_path=model_path) if missing else None
    graphs = read_message_graphs(dataset, missing) if missing else {}
    longest = getattr(policy.model.config, "max_position_embeddings", None) or 1 << 62
    rows_of: list[list[TokenSequence]] = []
    for position, trajectory in enumerate(trajectories):
        turns = None
        if renderer is not None and trajectory.lacks_ids():
            graph = graphs.get(trajectory.trajectory_id, {})
            rendered = renderer.render_trajectory(trajectory, graph)
            if rendered.find_reason(keep_lossy=False) is not None:
                rows_of.append([])
                continue
            turns = rendered.turns
        rows = tokenize_trajectory(trajectory, position=position, rendered=turns)
        fits = all(
            row.num_tokens <= longest and row.input_ids_T.max() < policy.num_vocabulary
            for row in rows
        )
        rows_of.append(rows if fits else [])
    return rows_of


def _compute_features(rows: Sequence[TokenSequence], policy: Policy) -> Tensor:
    features_R: list[Tensor] = [torch.empty(0)] * len(rows)
    for chosen, batch in pack_all(
        list(rows),
        range(len(rows)),
        tokens_per_pack=policy.limit_pack(TOKENS_PER_PACK),
        shared_up_to=policy.shared_up_to,
        ranks=policy.ranks,
    ):
        features_SH = policy.compute_state_features(batch).cpu()
        counts = [int(rows[r].turn_start_mask_T.sum()) for r in chosen]
        for r, features in zip(chosen, features_SH.split(counts), strict=True):
            features_R[r] = features
    return torch.cat(features_R)


def _list_turns(row: TokenSequence) -> list[int]:
    """Trained turns of a row, in order."""
    return [int(turn) for turn in np.unique(row.turn_T[row.action_mask_T])]
