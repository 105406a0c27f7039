"""The run's algorithm + its settings -> those that were set and change nothing, with the reason.

A setting that is ignored in silence is a wrong result that nobody sees.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Final

from starpo_train.config import AlgorithmSection
from starpo_train.objective import WITH_BASELINE

Uses = Callable[[str, AlgorithmSection], bool]
"""Algorithm and settings -> whether a setting changes anything."""

_CLIPPED: Final = ("ppo_clip", "gspo", "cispo")
_BY_TURN: Final = ("gae", "bilevel_gae", "reinforce_pp", "gigpo")
_BY_TOKEN: Final = ("starpo", "filtered_bc", "awr", "awac")


def _of(*algorithms: str) -> Uses:
    return lambda algorithm, section: algorithm in algorithms


def _of_starpo(holds: Callable[[AlgorithmSection], bool]) -> Uses:
    return lambda algorithm, section: algorithm == "starpo" and holds(section)


def _with_critic(algorithm: str, section: AlgorithmSection) -> bool:
    return algorithm == "awac" or (algorithm == "starpo" and section.advantage in _BY_TURN)


_USES: Final[dict[str, Uses]] = {
    "advantage": _of("starpo"),
    "singleton": _of_starpo(lambda s: s.advantage not in ("gae", "bilevel_gae", "reinforce_pp")),
    "group_filter": _of("starpo"),
    "keep_groups": _of_starpo(lambda s: s.group_filter == "starpo_s"),
    "snr_top_p": _of_starpo(lambda s: s.group_filter == "snr"),
    "soft_filter": _of("starpo"),
    "gigpo_omega": _of_starpo(lambda s: s.advantage == "gigpo"),
    "loss": _of("starpo"),
    "clip_low": _of_starpo(lambda s: s.loss in _CLIPPED),
    "clip_high": _of_starpo(lambda s: s.loss in _CLIPPED),
    "ratio_cap": _of_starpo(lambda s: s.loss == "cispo_trl"),
    "dual_clip": _of_starpo(lambda s: s.loss == "ppo_clip"),
    "proximal": _of("starpo"),
    "correction": _of_starpo(lambda s: s.proximal == "epoch"),
    "correction_cap": _of_starpo(lambda s: s.proximal == "epoch"),
    "correction_floor": _of_starpo(
        lambda s: s.proximal == "epoch" and s.correction in ("mask", "sequence_mask")
    ),
    "overlong_buffer": lambda _, section: section.overlong_length > 0,
    "kl_coef": _of("starpo"),
    "kl_estimator": _of_starpo(lambda s: s.kl_coef > 0),
    "estimated_logprobs": _of("starpo", "topr"),
    "baseline": _of(*WITH_BASELINE),
    "beta": _of("awr", "awac", "dro", "kto", "dpo"),
    "weight_max": _of("awr", "awac"),
    "pairs_per_task": _of("dpo"),
    "gamma_turn": _with_critic,
    "gamma_token": _of_starpo(lambda s: s.advantage in ("gae", "reinforce_pp")),
    "lambda_": lambda a, s: (
        a == "awac" or (a == "starpo" and s.advantage in ("gae", "bilevel_gae"))
    ),
    "process_reward_weight": _with_critic,
    "shaping_weight": _with_critic,
    "reward_threshold": _of("filtered_bc", "kto"),
    "aggregation": lambda a, s: a in _BY_TOKEN or s.entropy_coef > 0,
}
"""Setting -> whether it changes anything; those not named here always may."""


def list_unused(
    algorithm: str, section: AlgorithmSection, *, is_compared: bool = True
) -> list[str]:
    """Settings that differ from their default and change nothing; `algorithm` is the one that runs.

    `is_compared`: there are log-probabilities that the policy's drift can be measured from.
    """
    unused = []
    for option in fields(section):
        if getattr(section, option.name) == option.default:
            continue
        uses = _USES.get(option.name)
        limit = option.name in ("kl_ceiling", "ess_floor") and not is_compared
        if limit or (uses is not None and not uses(algorithm, section)):
            unused.append(option.name.rstrip("_"))
    return unused
