"""Dataset + run configuration -> TrainingData: rows of tokens with an advantage on each.

Everything is computed once, before the first step: the behaviour policy is fixed, so are its
rewards, its log-probabilities and its value function.

Suffixes: N trajectories, R rows, K turns (in row order), A trained tokens of a row.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from starpo_train.behaviour.table import (
    Behaviour,
    accept_rescored,
    read_behaviour,
    require_convention,
)
from starpo_train.config import RunConfig
from starpo_train.credit.assign import TokenizedTrajectories, needs_groups
from starpo_train.dataset import Trajectory, read_manifest
from starpo_train.dataset import read_trajectories as read_dataset_trajectories
from starpo_train.drift import sample_drift
from starpo_train.errors import DataError, ProvenanceError
from starpo_train.heldback import read_held_back
from starpo_train.leftout import LeftOut, name_reason
from starpo_train.objective import WITH_RATIOS, Objective
from starpo_train.policy import Policy
from starpo_train.provenance import (
    Choice,
    DataFacts,
    Terms,
    choose_algorithm,
    describe_data,
    explain_inexact,
    has_estimates,
)
from starpo_train.render import TurnRenderer
from starpo_train.rows import tokenize_trajectories
from starpo_train.targets import assign_targets, find_threshold, number_tasks
from starpo_train.temperature import (
    ConventionFit,
    accept_processed,
    compare_conventions,
    forget_tempered,
)
from starpo_train.trainingdata import TrainingData
from starpo_train.truncation import Truncated, leave_out_truncated
from starpo_train.unused import list_unused


def prepare_training_data(
    config: RunConfig, policy: Policy, *, kept: Mapping[str, Tensor] | None = None
) -> TrainingData:
    """Read, judge, tokenize, assign credit.

    `kept` is what an earlier life of the run asked of the model that it began with.

    Raises:
        DataError: no dataset, an empty split, no rewards, nothing left to train on.
        ProvenanceError: the algorithm is not legal for the data.
        ModelError: messages must be rendered and the model has no chat template.
    """
    everything = read_dataset_trajectories(config.data.dataset, split=config.data.split)
    threshold = find_threshold(config.algorithm, everything)
    trajectories = leave_out_truncated(everything, _find_truncated(config), threshold=threshold)
    _require_models(config, trajectories)
    fit = compare_conventions(policy, trajectories, models=config.data.models)
    trajectories, estimates = _read_logprobs(config, trajectories)
    left_out = LeftOut()
    left_out["truncated"] += len(everything) - len(trajectories)
    facts = describe_data(trajectories, models=config.data.models, estimates=estimates)
    choice = _choose(config, facts, fit, threshold=threshold)
    left_out.threshold = threshold
    chosen = _select(trajectories, choice, config, left_out, estimates)
    findings: Counter[str] = Counter()
    with_ratios = choice.algorithm in WITH_RATIOS
    at_temperature = config.data.logprobs == "processed" and with_ratios
    if not with_ratios:
        chosen = [forget_tempered(trajectory) for trajectory in chosen]
    tokenized = tokenize_trajectories(
        chosen,
        config.data,
        policy,
        model_path=config.model.path,
        left_out=left_out,
        findings=findings,
        at_temperature=at_temperature,
        estimates=estimates if choice.estimated else None,
    )
    if with_ratios:
        _require_logprobs(tokenized, config)
    objective = Objective(algorithm=choice.algorithm, section=config.algorithm)
    _require_some(tokenized.trajectories, choice, config, left_out)
    targets = assign_targets(
        tokenized, objective, config, policy, threshold=threshold, kept=kept or {}
    )
    left_out["no_advantage"] += len(tokenized.trajectories) - len(targets.tokenized.trajectories)
    tokenized = targets.tokenized
    _require_some(tokenized.trajectories, choice, config, left_out)
    summary = dict(targets.facts)
    recorded = [t for t in tokenized.trajectories if not t.lacks_ids(config.data.models)]
    if recorded and policy.tokenizer.chat_template:
        renderer = TurnRenderer(policy.tokenizer, model_path=config.model.path)
        summary["recorded_drift"] = sample_drift(
            recorded, config.data.dataset, renderer, models=config.data.models
        )
    summary |= {
        "algorithm": choice.algorithm,
        "algorithm_reason": choice.reason,
        "unused_settings": _list_unused(tokenized, objective),
        "estimated": choice.estimated,
        "behaviour_sha256": None if estimates is None else estimates.digest,
        "num_trajectories": len(tokenized.trajectories),
        "num_trajectories_read": len(everything),
        "num_rows": len(tokenized.rows),
        "num_tokens": sum(row.num_tokens for row in tokenized.rows),
        "num_action_tokens": sum(row.num_actions for row in tokenized.rows),
        "num_retokenized_rows": sum(not row.recorded for row in tokenized.rows),
        "num_estimated_rows": sum(row.estimated for row in tokenized.rows),
        "reward_mean": float(np.mean([t.reward for t in trajectories if t.reward is not None])),
        "rendering": dict(findings.most_common()),
        "logprobs": config.data.logprobs,
        "logprob_conventions": None if fit is None else fit.describe(),
        "left_out": {reason: count for reason, count in left_out.items() if count},
    }
    longest = max(row.num_tokens for row in tokenized.rows)
    held_back, note = read_held_back(config, policy, threshold=threshold, longest=longest)
    if note is not None:
        summary["held_back_note"] = note
    if left_out["too_long_for_model"]:
        summary["too_long"] = {"longest_row": left_out.longest, "limit": left_out.limit}
    return TrainingData(
        manifest=read_manifest(config.data.dataset),
        choice=choice,
        objective=objective,
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        task_of_N=number_tasks(tokenized),
        rewards_N=np.array([t.reward for t in tokenized.trajectories], dtype=np.float64),
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        advantages_R=targets.advantages_R,
        outcomes_N=targets.outcomes_N,
        desirable_N=targets.desirable_N,
        pairs_P2=targets.pairs_P2,
        reference_R=targets.reference_R,
        mismatched=targets.mismatched,
        mismatched_reference_R=targets.mismatched_reference_R,
        held_back=held_back,
        kept=targets.kept,
        facts=summary,
    )


def _read_logprobs(
    config: RunConfig, trajectories: list[Trajectory]
) -> tuple[list[Trajectory], Behaviour | None]:
    """Trajectories with the log-probabilities that may stand for theirs, and those of a fitted model."""
    if config.data.logprobs == "processed":
        trajectories = [accept_processed(trajectory) for trajectory in trajectories]
    if config.data.behaviour is None:
        return trajectories, None
    estimates = read_behaviour(config.data.behaviour, dataset=config.data.dataset)
    require_convention(estimates, config.data)
    return [accept_rescored(trajectory, estimates) for trajectory in trajectories], estimates


def _find_truncated(config: RunConfig) -> Truncated:
    if config.data.truncated != "auto":
        return config.data.truncated
    return "drop_failed" if config.algorithm.name == "auto" else "keep"


def _choose(
    config: RunConfig, facts: DataFacts, fit: ConventionFit | None, *, threshold: float
) -> Choice:
    algorithm = config.algorithm
    try:
        return choose_algorithm(
            algorithm.name,
            facts,
            Terms(
                needs_groups=needs_groups(algorithm),
                accept_estimated=algorithm.estimated_logprobs == "accept",
                has_threshold=algorithm.reward_threshold is not None,
                good_from=threshold,
            ),
        )
    except ProvenanceError as error:
        if fit is None or fit.better in (None, config.data.logprobs):
            raise
        raise ProvenanceError(
            f"{error} The log-probabilities of turns sampled at other temperatures fit "
            f"data.logprobs = {fit.better!r}."
        ) from None


def _require_some(
    trajectories: list[Trajectory], choice: Choice, config: RunConfig, left_out: LeftOut
) -> None:
    if not trajectories:
        raise DataError(
            f"{config.data.dataset}: nothing is left to train on with {choice.algorithm}. Left out "
            f"of {left_out.total():,} trajectories in split {config.data.split!r}:"
            f"{left_out.explain()}"
        )


def _require_logprobs(tokenized: TokenizedTrajectories, config: RunConfig) -> None:
    """Estimates are of ids: those of another tokenizer or template are of other ids."""
    for r, row in enumerate(tokenized.rows):
        if row.logprobs_T is None:
            raise DataError(
                f"trajectory {tokenized.name_row(r)}: has no log-probabilities as this model reads "
                f"it; data.behaviour = {str(config.data.behaviour)!r} was made with another tokenizer, "
                "chat template or data.models. Make it with this model."
            )


def _list_unused(tokenized: TokenizedTrajectories, objective: Objective) -> list[str]:
    is_compared = objective.needs_reference or any(
        row.logprobs_T is not None for row in tokenized.rows
    )
    unused = list_unused(objective.algorithm, objective.section, is_compared=is_compared)
    return [f"algorithm.{name}" for name in unused]


def _require_models(config: RunConfig, trajectories: list[Trajectory]) -> None:
    known = {turn.model for trajectory in trajectories for turn in trajectory.turns}
    wanted = config.data.models
    if wanted and known and not known & set(wanted):
        names = ", ".join(sorted(repr(name) for name in known))
        raise DataError(f"data.models = {list(wanted)}: no turn is of these; there are {names}.")


def _select(
    trajectories: list[Trajectory],
    choice: Choice,
    config: RunConfig,
    left_out: LeftOut,
    estimates: Behaviour | None,
) -> list[Trajectory]:
    chosen = []
    models = config.data.models
    for trajectory in trajectories:
        if trajectory.reward is None:
            reason = "no_reward"
        elif choice.algorithm in WITH_RATIOS:
            reason = explain_inexact(trajectory, models=models)
            if choice.estimated and has_estimates(trajectory, models=models, estimates=estimates):
                reason = None
        elif trajectory.usable_for == "none":
            reason = name_reason(trajectory.reasons, trajectory.usable_for)
        else:
            cloned = choice.algorithm == "filtered_bc"
            reason = (
                "below_threshold" if cloned and trajectory.reward < left_out.threshold else None
            )
        if reason is None:
            chosen.append(trajectory)
        else:
            left_out[reason] += 1
    _require_some(chosen, choice, config, left_out)
    return chosen
