"""A checkpoint and a dataset -> estimates, a verdict, ope.json."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from starpo_train.behaviour.table import Behaviour, accept_rescored, read_behaviour
from starpo_train.config import DataSection, ModelSection
from starpo_train.dataset import read_manifest, read_trajectories
from starpo_train.errors import DataError
from starpo_train.model import load_policy
from starpo_train.modelfolder import hash_weights, was_trained_on
from starpo_train.ope.candidates import CandidateFacts, build_transitions
from starpo_train.ope.evaluation import Evaluation, evaluate_logged_turns
from starpo_train.ope.settings import OpeSettings
from starpo_train.ope.turns import (
    ScoredTrajectories,
    Selection,
    build_logged_turns,
    list_turns,
    name_row,
    select_trajectories,
)
from starpo_train.ope.verdict import Estimate
from starpo_train.policy import Policy
from starpo_train.rows import tokenize_trajectories
from starpo_train.scoring import score_rows
from starpo_train.temperature import accept_processed

TOKENS_PER_PACK = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeResult:
    """What was found."""

    settings: OpeSettings
    evaluation: Evaluation
    weights_sha256: str
    dataset_digest: str
    left_out: dict[str, int]
    candidates: CandidateFacts | None

    def describe(self) -> dict[str, Any]:
        """For ope.json: no number that is none."""
        found = self.evaluation
        values = {
            "checkpoint": {
                "path": self.settings.checkpoint,
                "weights_sha256": self.weights_sha256,
            },
            "dataset": {
                "path": str(self.settings.dataset),
                "digest": self.dataset_digest,
                "split": self.settings.split,
            },
            "settings": asdict(self.settings),
            "num_trajectories": found.basis.num_trajectories,
            "num_clusters": found.num_clusters,
            "left_out": self.left_out,
            "behaviour": describe_estimate(found.behaviour),
            "estimates": [describe_estimate(estimate) for estimate in found.estimates],
            "weights": None
            if found.basis.weights is None
            else asdict(found.basis.weights) | {"mean": describe_mean(found.basis.mean_weight)},
            "ess_per_turn": list(found.ess_per_turn_K),
            "bellman_error": found.bellman_error,
            "bellman_error_of_zero": found.bellman_error_of_zero,
            "candidates": None if self.candidates is None else asdict(self.candidates),
            "verdict": asdict(found.verdict),
        }
        return json.loads(json.dumps(_drop_infinite(values), default=str))


def run_ope(settings: OpeSettings, *, output: Path | None = None) -> OpeResult:
    """Score every recorded turn under the checkpoint, estimate, decide, and write `output`.

    Raises:
        DataError: no dataset, an empty split, no rewards, or nothing that can be scored.
        ModelError: the checkpoint cannot be loaded, or must render messages and has no template.
    """
    manifest = read_manifest(settings.dataset)
    estimates = None
    if settings.behaviour is not None:
        estimates = read_behaviour(settings.behaviour, dataset=settings.dataset)
    selection = _select(settings, estimates)
    weights_sha256 = hash_weights(settings.checkpoint)
    policy = load_policy(ModelSection(path=settings.checkpoint, device=settings.device))
    scored = _score(settings, selection, policy, estimates)
    turns = build_logged_turns(
        scored.trajectories,
        scored.turns_N,
        provenance=selection.provenance,
        num_left_out=selection.num_rewarded - len(scored.trajectories),
        is_trained_on=was_trained_on(settings.checkpoint, manifest.digest, settings.split),
        cluster=settings.cluster,
        process_reward_weight=settings.process_reward_weight,
    )
    transitions, candidates = None, None
    if settings.samples:
        transitions, candidates = build_transitions(
            policy,
            settings.checkpoint,
            scored,
            turns.rewards_NK[turns.mask_NK],
            num_samples=settings.samples,
            seed=settings.seed,
            tokens_per_pack=TOKENS_PER_PACK,
        )
    evaluation = evaluate_logged_turns(turns, transitions, gamma=settings.gamma, seed=settings.seed)
    result = OpeResult(
        settings=settings,
        evaluation=evaluation,
        weights_sha256=weights_sha256,
        dataset_digest=manifest.digest,
        left_out=dict(+selection.left_out),
        candidates=candidates,
    )
    if output is not None:
        output.write_text(json.dumps(result.describe(), indent=2) + "\n", encoding="utf-8")
    return result


def _select(settings: OpeSettings, estimates: Behaviour | None) -> Selection:
    trajectories = read_trajectories(settings.dataset, split=settings.split)
    if settings.logprobs == "processed":
        trajectories = [accept_processed(trajectory) for trajectory in trajectories]
    if estimates is not None:
        trajectories = [accept_rescored(trajectory, estimates) for trajectory in trajectories]
    return select_trajectories(trajectories, models=settings.models, estimates=estimates)


def _score(
    settings: OpeSettings, selection: Selection, policy: Policy, estimates: Behaviour | None
) -> ScoredTrajectories:
    tokenized = tokenize_trajectories(
        selection.trajectories,
        DataSection(dataset=settings.dataset, split=settings.split, models=settings.models),
        policy,
        model_path=settings.checkpoint,
        left_out=selection.left_out,
        findings=Counter(),
        at_temperature=settings.logprobs == "processed",
        estimates=estimates,
    )
    scores = score_rows(
        policy,
        tokenized.rows,
        tokens_per_pack=TOKENS_PER_PACK,
        name_row=lambda r: name_row(tokenized, r),
    )
    scored = list_turns(tokenized, scores.logprobs_R)
    if selection.provenance != "missing":
        scored = scored.drop_incomplete(selection.left_out)
    if not scored.trajectories:
        raise DataError(
            f"{settings.dataset}: no trajectory of split {settings.split!r} can be evaluated "
            f"({dict(+selection.left_out)}); choose another split, or record rewards."
        )
    return scored


def describe_estimate(estimate: Estimate) -> dict[str, Any]:
    """For ope.json: an estimator that has no answer is null, with the reason."""
    return {
        "name": estimate.name,
        "value": estimate.value,
        "interval": None if estimate.interval is None else list(asdict(estimate.interval).values()),
        "change": None if estimate.change is None else list(asdict(estimate.change).values()),
        "reason": estimate.reason,
        "estimated": estimate.is_estimated,
    }


def describe_mean(estimate: Estimate | None) -> dict[str, Any] | None:
    """The weights' mean, which should be 1."""
    return None if estimate is None else describe_estimate(estimate)


def _drop_infinite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _drop_infinite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_drop_infinite(value) for value in values]
    if isinstance(values, float) and not isfinite(values):
        return None
    return values
