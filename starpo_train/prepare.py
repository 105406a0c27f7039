"""Dataset + run configuration -> TrainingData: rows of tokens with an advantage on each.

Everything is computed once, before the first step: the behaviour policy is fixed, so are its
rewards, its log-probabilities and its value function.

Suffixes: N trajectories, R rows, K turns (in row order), A trained tokens of a row.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from starpo_train.config import RunConfig
from starpo_train.credit.assign import TokenizedTrajectories, assign_credit
from starpo_train.dataset import Manifest, Trajectory, read_manifest, read_message_graphs
from starpo_train.dataset import read_trajectories as read_dataset_trajectories
from starpo_train.drift import sample_drift
from starpo_train.errors import DataError, ProvenanceError
from starpo_train.findings import FAULTS, LOSSES
from starpo_train.policy import Policy
from starpo_train.provenance import (
    Choice,
    DataFacts,
    choose_algorithm,
    describe_data,
    explain_inexact,
)
from starpo_train.render import TurnRenderer
from starpo_train.temperature import ConventionFit, accept_processed, compare_conventions
from starpo_train.tokens import TokenSequence, tokenize_trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What the training loop goes through."""

    manifest: Manifest
    choice: Choice
    """Algorithm that runs and why."""
    trajectory_ids_N: list[str]
    task_of_N: np.ndarray
    """int64: the same number for attempts at one task."""
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

    def name_row(self, row: int) -> str:
        """Trajectory that a row belongs to."""
        return next(
            name
            for name, rows in zip(self.trajectory_ids_N, self.rows_of_N, strict=True)
            if row in rows
        )


def prepare_training_data(
    config: RunConfig, policy: Policy, *, critic_values_K: Tensor | None = None
) -> TrainingData:
    """Read, judge, tokenize, assign credit.

    Raises:
        DataError: no dataset, an empty split, no rewards, nothing left to train on.
        ProvenanceError: the algorithm is not legal for the data.
        ModelError: messages must be rendered and the model has no chat template.
    """
    everything = read_dataset_trajectories(config.data.dataset, split=config.data.split)
    trajectories = [
        t for t in everything if config.data.truncated == "keep" or t.end != "truncated"
    ]
    _require_models(config, trajectories)
    fit = compare_conventions(policy, trajectories, models=config.data.models)
    if config.data.logprobs == "processed":
        trajectories = [accept_processed(trajectory) for trajectory in trajectories]
    left_out: Counter[str] = Counter()
    left_out["truncated"] += len(everything) - len(trajectories)
    facts = describe_data(trajectories, models=config.data.models)
    choice = _choose(config, facts, fit)
    chosen = _select(trajectories, choice.algorithm, config, left_out)
    findings: Counter[str] = Counter()
    at_temperature = config.data.logprobs == "processed" and choice.algorithm == "starpo"
    tokenized = _tokenize(chosen, config, policy, left_out, findings, at_temperature=at_temperature)
    summary: dict[str, Any] = {}
    advantages_R: list[np.ndarray] = []
    if choice.algorithm == "starpo":
        credit = assign_credit(tokenized, config, policy, critic_values_K=critic_values_K)
        tokenized, advantages_R = credit.tokenized, credit.advantages_R
        critic_values_K, summary = credit.critic_values_K, credit.facts
    if not tokenized.rows:
        raise DataError(
            f"{config.data.dataset}: nothing left to train on ({dict(left_out)})."
            + _advise_rendering(left_out)
        )
    recorded = [t for t in tokenized.trajectories if not t.lacks_ids(config.data.models)]
    if recorded and policy.tokenizer.chat_template:
        renderer = TurnRenderer(policy.tokenizer, model_path=config.model.path)
        summary["recorded_drift"] = sample_drift(
            recorded, config.data.dataset, renderer, models=config.data.models
        )
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
        "rendering": dict(findings.most_common()),
        "logprobs": config.data.logprobs,
        "logprob_conventions": None if fit is None else fit.describe(),
        "left_out": {reason: count for reason, count in left_out.items() if count},
    }
    return TrainingData(
        manifest=read_manifest(config.data.dataset),
        choice=choice,
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        task_of_N=_number_tasks(tokenized.trajectories),
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        advantages_R=advantages_R,
        critic_values_K=critic_values_K,
        facts=summary,
    )


def _choose(config: RunConfig, facts: DataFacts, fit: ConventionFit | None) -> Choice:
    algorithm = config.algorithm
    try:
        return choose_algorithm(
            algorithm.name,
            facts,
            needs_groups=algorithm.advantage == "group" and algorithm.singleton == "drop",
        )
    except ProvenanceError as error:
        if fit is None or fit.better in (None, config.data.logprobs):
            raise
        raise ProvenanceError(
            f"{error} The log-probabilities of turns sampled at other temperatures fit "
            f"data.logprobs = {fit.better!r}."
        ) from None


def _advise_rendering(left_out: Counter[str]) -> str:
    if not any(left_out[reason] for reason in (*FAULTS, *LOSSES)):
        return ""
    return (
        " What the chat template does to them: `starpo-train explain DATASET --model PATH`; "
        "docs/tokens.md says what to do."
    )


def _require_models(config: RunConfig, trajectories: list[Trajectory]) -> None:
    known = {turn.model for trajectory in trajectories for turn in trajectory.turns}
    wanted = config.data.models
    if wanted and known and not known & set(wanted):
        names = ", ".join(sorted(repr(name) for name in known))
        raise DataError(f"data.models = {list(wanted)}: no turn is of these; there are {names}.")


def _number_tasks(trajectories: list[Trajectory]) -> np.ndarray:
    """A trajectory that names no task is a task of its own."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [("task", t.task_id) if t.task_id else ("run", t.trajectory_id) for t in trajectories]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


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
    trajectories: list[Trajectory],
    config: RunConfig,
    policy: Policy,
    left_out: Counter[str],
    findings: Counter[str],
    *,
    at_temperature: bool,
) -> TokenizedTrajectories:
    models = config.data.models
    missing = [t.trajectory_id for t in trajectories if t.lacks_ids(models)]
    graphs, renderer = {}, None
    if missing:
        renderer = TurnRenderer(policy.tokenizer, model_path=config.model.path)
        graphs = read_message_graphs(config.data.dataset, missing)
    longest = getattr(policy.model.config, "max_position_embeddings", None) or 1 << 62
    kept = TokenizedTrajectories(trajectories=[], rows=[], rows_of_N=[])
    for position, trajectory in enumerate(trajectories):
        turns = None
        if renderer is not None and trajectory.lacks_ids(models):
            graph = graphs.get(trajectory.trajectory_id, {})
            rendered = renderer.render_trajectory(trajectory, graph, models=models)
            findings.update(rendered.findings.keys())
            reason = rendered.find_reason(keep_lossy=config.data.lossy_rendering == "keep")
            if reason is not None:
                left_out[reason] += 1
                continue
            turns = rendered.turns
        rows = tokenize_trajectory(
            trajectory,
            position=position,
            rendered=turns,
            models=models,
            at_temperature=at_temperature,
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
    lowest = min(int(row.input_ids_T.min()) for row in rows)
    if lowest < 0:
        raise DataError(
            f"trajectory {trajectory.trajectory_id}: token id {lowest} is none; the dataset's "
            "token_provenance must not be 'exact' there. Export it again with this release."
        )
    highest = max(int(row.input_ids_T.max()) for row in rows)
    if highest >= policy.num_vocabulary:
        raise DataError(
            f"trajectory {trajectory.trajectory_id}: token id {highest} is outside the vocabulary "
            f"of {config.model.path!r} ({policy.num_vocabulary} ids); train the model that was "
            "recorded, or one with its tokenizer."
        )
