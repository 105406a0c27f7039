"""Why trajectories are not trained on: names and counts -> words, and what to do.

docs/training.md has every name in one table.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from starpo_trace.convert.verdict import INFORMATION, NOT_EVEN_SFT
from starpo_train.findings import FAULTS, LOSSES

_CLONE: Final = "record them (docs/providers.md), or set algorithm.name = 'filtered_bc'"
_RENDERED: Final = (
    "the chat template of model.path cannot render it, or changes it",
    "`starpo-train explain DATASET --model PATH` shows it; docs/tokens.md says what to do",
)
_LOST: Final = (
    "the chat template of model.path loses a part of it",
    "`starpo-train explain DATASET --model PATH` shows it; take another template, or set "
    "data.lossy_rendering = 'keep' (docs/tokens.md)",
)
_OTHER: Final = ("see docs/training.md", "record it again, whole")

REASONS: Final = {
    "truncated": (
        "cut by a limit: all with data.truncated = 'drop', else those that failed",
        "set data.truncated = 'keep'",
    ),
    "no_reward": (
        "no reward that counts",
        "record one with `starpo_trace.reward(...)`, or name its source as trusted in "
        "`starpo-trace export`",
    ),
    "below_threshold": (
        "reward below algorithm.reward_threshold = {threshold:g}",
        "lower it",
    ),
    "no_advantage": (
        "nothing to compare: the rewards of its task are equal, it is the only attempt, or "
        "algorithm.group_filter left its task out",
        "record more attempts at each task, set algorithm.group_filter = 'none', or "
        "algorithm.singleton = 'global_baseline'",
    ),
    "no_trained_turn": (
        "no turn is of data.models",
        "name other models there",
    ),
    "no_tokens": (
        "no answer holds a token",
        "record ids or content",
    ),
    "too_long_for_model": (
        "a row is longer than the model reads: {longest:,} tokens, max_position_embeddings = "
        "{limit:,}",
        "train a model with a longer context",
    ),
    "token_ids_missing": ("token ids were not recorded", _CLONE),
    "logprob_missing": ("log-probabilities were not recorded", _CLONE),
    "logprob_estimated": (
        "sampling reshaped the distribution that the log-probabilities are of",
        "set data.logprobs = 'processed' if the server returned those (docs/tokens.md), or "
        "algorithm.name = 'filtered_bc'",
    ),
    **dict.fromkeys(FAULTS, _RENDERED),
    **dict.fromkeys(LOSSES, _LOST),
}
"""Name -> what it means, and what to do; others are the dataset's own (docs/spans.md)."""


class LeftOut(Counter[str]):
    """Reason -> trajectories, and the numbers that make a reason plain."""

    threshold: float = 0.0
    """Reward that filtered BC asks for."""
    longest: int = 0
    """Tokens of the longest row that does not fit the model."""
    limit: int = 0
    """Tokens that the model reads."""

    def explain(self) -> str:
        """A line for each reason, the most frequent first."""
        numbers = {"threshold": self.threshold, "longest": self.longest, "limit": self.limit}
        lines = []
        for reason, count in self.most_common():
            if count:
                meaning, remedy = REASONS.get(reason, _OTHER)
                lines.append(f"\n  {count:,} {reason}: {meaning.format(**numbers)}; {remedy}")
        return "".join(lines)


def name_reason(reasons: Sequence[str], usable_for: str) -> str:
    """The dataset's reasons for its verdict -> the first one that takes something away."""
    if usable_for == "none":
        return next((reason for reason in reasons if reason in NOT_EVEN_SFT), "not_usable")
    denying = (reason for reason in reasons if reason not in INFORMATION)
    return next(denying, f"usable_for_{usable_for}")
