"""Inspect's scores of a sample -> numbers, one of them the reward."""

import math
from collections.abc import Mapping
from typing import Any, Final

_LETTERS: Final = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS: Final = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def read_scores(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Scores by scorer -> numbers, `name` or `name.key`; None: what is no number.

    C and yes are 1, P is 0.5, I, N and no are 0, as Inspect counts them; numbers stay; any other
    text, and NaN (Inspect's "not scored"), is None.
    """
    numbers: dict[str, float | None] = {}
    for name, score in scores.items():
        value = score.value
        keyed = (
            {f"{name}.{key}": each for key, each in value.items()}
            if isinstance(value, Mapping)
            else {f"{name}.{n}": each for n, each in enumerate(value)}
            if isinstance(value, (list, tuple))
            else {name: value}
        )
        numbers |= {key: _read_number(each) for key, each in keyed.items()}
    return numbers


def _read_number(value: Any) -> float | None:
    if isinstance(value, str):
        value = _LETTERS.get(value, _WORDS.get(value.lower(), value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def choose_reward(numbers: Mapping[str, float | None], scorer: str | None) -> tuple[str, float]:
    """Whose score is the reward, and the reward.

    Raises:
        ValueError: there is none, or it is no number.
    """
    name = next(iter(numbers), None) if scorer is None else scorer
    if name is None or name not in numbers:
        known = ", ".join(numbers) or "none"
        raise ValueError(f"no score {name!r}; there are: {known}. Set environment_args.scorer")
    number = numbers[name]
    if number is None:
        raise ValueError(f"the score {name!r} is no number")
    return name, number
