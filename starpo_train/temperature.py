"""Log-probabilities of turns sampled at a temperature other than 1: whose they are.

A server returns them either raw, the log-softmax of the logits as they are (vLLM's default), or
processed, that of logits / temperature, from which was sampled. Only the latter are the behaviour
policy's. Nothing in a trace says which: `data.logprobs` does, and `compare_conventions` measures it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from starpo_trace.convert.verdict import INFORMATION
from starpo_train.dataset import Trajectory, Turn
from starpo_train.pack import pack_rows
from starpo_train.policy import Policy
from starpo_train.tokens import TokenSequence, TurnTokens, build_rows

GREEDY_BELOW: Final = 1e-5
"""Temperatures under this one sample nothing."""
_MOST_TURNS: Final = 16
_MOST_TOKENS: Final = 8192
_REASON: Final = "logprob_estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConventionFit:
    """How well recorded log-probabilities fit the policy's own, in nats/token."""

    num_tokens: int
    """Sampled tokens that were compared, all at temperatures other than 1."""
    raw: float
    """Mean |recorded - the policy's at temperature 1|."""
    processed: float
    """Mean |recorded - the policy's at the recorded temperature|."""

    @property
    def better(self) -> str | None:
        """`raw` or `processed`, whichever fits at least twice as well."""
        low, high = sorted((self.raw, self.processed))
        if high < 2 * low or high == 0:
            return None
        return "raw" if self.raw < self.processed else "processed"

    def describe(self) -> dict[str, Any]:
        """For the run's start record."""
        return asdict(self) | {"better": self.better}


def accept_processed(trajectory: Trajectory) -> Trajectory:
    """A trajectory whose log-probabilities are processed: exact where only temperature reshaped.

    Top-p and top-k leave tokens out, so what they reshaped stays an estimate.
    """
    turns = tuple(
        replace(turn, logprobs_exact=True) if _is_tempered(turn) else turn
        for turn in trajectory.turns
    )
    usable_for, reasons = trajectory.usable_for, trajectory.reasons
    accepted = all(turn.logprobs_exact for turn in turns if turn.logprobs_T is not None)
    if accepted and _REASON in reasons:
        reasons = tuple(reason for reason in reasons if reason != _REASON)
        if usable_for == "sft" and set(reasons) <= set(INFORMATION):
            usable_for = "rl"
    return replace(trajectory, turns=turns, usable_for=usable_for, reasons=reasons)


def forget_tempered(trajectory: Trajectory) -> Trajectory:
    """A trajectory without log-probabilities of turns sampled at another temperature than 1.

    A loss without ratios takes the policy at temperature 1, with which they cannot be compared.
    """
    turns = tuple(
        replace(turn, logprobs_T=None, logprobs_exact=False)
        if turn.temperature not in (None, 1)
        else turn
        for turn in trajectory.turns
    )
    return replace(trajectory, turns=turns)


@torch.no_grad()
def compare_conventions(
    policy: Policy, trajectories: Sequence[Trajectory], *, models: Sequence[str] = ()
) -> ConventionFit | None:
    """Score some turns that were sampled at other temperatures both ways; None without any."""
    turns = [
        turn
        for trajectory in trajectories
        for turn in trajectory.turns
        if _is_tempered(turn) and (not models or turn.model in models)
    ]
    longest = min(
        getattr(policy.model.config, "max_position_embeddings", None) or _MOST_TOKENS, _MOST_TOKENS
    )
    rows = [row for row in map(_make_row, turns) if row.num_tokens <= longest]
    rows = [row for row in rows if row.input_ids_T.max() < policy.num_vocabulary]
    if not rows:
        return None
    sums, count = {"raw": 0.0, "processed": 0.0}, 0
    for at in np.linspace(0, len(rows) - 1, min(len(rows), _MOST_TURNS)).astype(int).tolist():
        batch = pack_rows(rows, [at])
        if batch.behaviour_logprobs_A is None:
            continue
        count += batch.num_actions
        for name, tried in (("raw", replace(batch, temperatures_A=None)), ("processed", batch)):
            error_A = policy.score_actions(tried).logprobs_A.cpu() - batch.behaviour_logprobs_A
            sums[name] += float(error_A.abs().double().sum())
    return ConventionFit(
        num_tokens=count, raw=sums["raw"] / count, processed=sums["processed"] / count
    )


def _is_tempered(turn: Turn) -> bool:
    """Ids and log-probabilities recorded, and nothing but a temperature other than 1 in the way."""
    return (
        turn.response_ids_T is not None
        and turn.logprobs_T is not None
        and not turn.logprobs_exact
        and turn.temperature is not None
        and turn.temperature >= GREEDY_BELOW
        and turn.temperature != 1
        and turn.top_p in (None, 1)
        and (turn.top_k is None or turn.top_k <= 0)
    )


def _make_row(turn: Turn) -> TokenSequence:
    assert turn.prompt_ids_T is not None  # noqa: S101 (as response ids are recorded)
    assert turn.response_ids_T is not None  # noqa: S101
    tokens = TurnTokens(
        turn=turn.turn,
        prompt_ids_T=turn.prompt_ids_T,
        response_ids_T=turn.response_ids_T,
        logprobs_T=turn.logprobs_T,
        recorded=True,
        trained=True,
        temperature=turn.temperature or 1.0,
    )
    return build_rows([tokens], trajectory=0)[0]
