"""Turns of an open model without log-probabilities -> its own, by asking the very weights again.

They are exact only where all that shaped the sampling is known: the weights, by their hash; the ids,
recorded; the temperature, recorded, with nothing cut off by top-p or top-k.
"""

from collections import Counter
from dataclasses import dataclass, replace

from starpo_train.behaviour.settings import BehaviourConfig, BehaviourSection
from starpo_train.behaviour.table import TurnLogprobs, write_behaviour
from starpo_train.behaviour.turns import describe_dataset, split_by_turn
from starpo_train.config import DataSection
from starpo_train.dataset import Trajectory, Turn, read_trajectories
from starpo_train.errors import DataError, ModelError
from starpo_train.leftout import LeftOut
from starpo_train.model import load_policy
from starpo_train.modelfolder import hash_weights
from starpo_train.rows import tokenize_trajectories
from starpo_train.scoring import score_rows
from starpo_train.temperature import GREEDY_BELOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What was scored again, and what was not."""

    num_turns: int
    left_out: dict[str, int]
    """Turns that keep missing theirs: why -> how many."""
    temperatures: list[float]
    """At which the turns were sampled; other than 1, a run needs data.logprobs = 'processed'."""


def rescore_behaviour(config: BehaviourConfig) -> Rescored:
    """Score every turn whose sampling is wholly known, and write the folder.

    Raises:
        ModelError: the weights are not those that the configuration names.
        DataError: no turn is of the policy, or none can be scored.
    """
    section = config.behaviour
    weights_sha256 = hash_weights(config.model.path)
    if weights_sha256 != section.weights_sha256:
        raise ModelError(
            f"model.path = {config.model.path!r}: the SHA-256 of its weights is {weights_sha256}, "
            f"behaviour.weights_sha256 = {section.weights_sha256!r}; only the weights that sampled "
            "the data can say what their log-probabilities were."
        )
    everything = read_trajectories(section.dataset, split=section.split)
    trajectories = [t for t in everything if t.policy_id == section.policy_id]
    if not trajectories:
        known = sorted({repr(t.policy_id) for t in everything if t.policy_id is not None})
        raise DataError(
            f"{section.dataset}: no trajectory of split {section.split!r} is of "
            f"behaviour.policy_id = {section.policy_id!r}; there are {', '.join(known) or 'none'}."
        )
    policy = load_policy(config.model, seed=section.seed)
    left_out = LeftOut()
    known = [_keep_known(trajectory, section, left_out) for trajectory in trajectories]
    tokenized = tokenize_trajectories(
        [t for t in known if any(turn.response_ids_T is not None for turn in t.turns)],
        DataSection(dataset=section.dataset, models=section.models),
        policy,
        model_path=config.model.path,
        left_out=left_out,
        findings=Counter(),
        at_temperature=True,
    )
    if not tokenized.rows:
        raise DataError(
            f"{section.dataset}: no turn can be scored exactly: "
            + ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            + "."
        )
    scores = score_rows(
        policy,
        tokenized.rows,
        tokens_per_pack=config.train.tokens_per_pack,
        name_row=tokenized.name_row,
    )
    turns: list[TurnLogprobs] = []
    for trajectory, rows in zip(tokenized.trajectories, tokenized.rows_of_N, strict=True):
        for r in rows:
            turns += split_by_turn(trajectory, tokenized.rows[r], scores.logprobs_R[r])
    temperatures = {turn.temperature or 1.0 for t in tokenized.trajectories for turn in t.turns}
    found = Rescored(
        num_turns=len(turns), left_out=dict(left_out), temperatures=sorted(temperatures)
    )
    write_behaviour(
        section.output,
        turns,
        provenance="exact",
        facts={
            "method": "rescore",
            "dataset": describe_dataset(section),
            "model": {"path": config.model.path, "weights_sha256": weights_sha256},
            "policy_id": section.policy_id,
            "temperatures": found.temperatures,
            "left_out": found.left_out,
        },
    )
    return found


def _keep_known(
    trajectory: Trajectory, section: BehaviourSection, left_out: Counter[str]
) -> Trajectory:
    """The trajectory with ids only on turns whose sampling is wholly known."""
    turns = []
    for turn in trajectory.turns:
        reason = _explain_unknown(turn, section)
        if reason is None:
            turns.append(turn)
            continue
        left_out[reason] += 1
        turns.append(replace(turn, prompt_ids_T=None, response_ids_T=None, output_node=None))
    return replace(trajectory, turns=tuple(turns))


def _explain_unknown(turn: Turn, section: BehaviourSection) -> str | None:
    if section.models and turn.model not in section.models:
        return "other_model"
    if turn.response_ids_T is None:
        return "token_ids_missing"
    if turn.temperature is None:
        return "temperature_not_recorded"
    if turn.temperature < GREEDY_BELOW:
        return "greedy"
    if turn.top_p not in (None, 1) or (turn.top_k is not None and turn.top_k > 0):
        return "top_p_or_top_k"
    return None
