"""Arms described by two words -> pulls -> did most of them pay?

How often an arm pays follows from its two words, the same way in all tasks, so it can be learnt
from some combinations of words and used on others. Each combination belongs to one split.
"""

import math
import random
from typing import Any

from learn.envs.base import (
    SHIFTED,
    Action,
    Game,
    Outcome,
    Spec,
    hashed_split,
    make_tool,
    read_argument,
)

MATERIALS = {
    "golden": 1.8, "silver": 1.4, "copper": 1.0, "glass": 0.6, "stone": 0.2,
    "wooden": -0.2, "paper": -0.6, "rusty": -1.0, "dusty": -1.4, "broken": -1.8,
}  # fmt: skip
THINGS = {
    "harp": 1.8, "drum": 1.4, "horn": 1.0, "bell": 0.6, "lute": 0.2,
    "fife": -0.2, "gong": -0.6, "pipe": -1.0, "lyre": -1.4, "viol": -1.8,
}  # fmt: skip
OFFSET = -0.5
ARMS = ("a", "b", "c", "d")
SMALLEST_GAP = 0.2
"""By how much the best arm pays more often than the next; `shifted` tasks have less."""
SMALLEST_BEST = 0.65
"""How often the best arm pays at least."""
COMBINATIONS = {
    split: [
        (material, thing)
        for material in MATERIALS
        for thing in THINGS
        if hashed_split(f"{material} {thing}") == split
    ]
    for split in ("warmup", "train", "tuning", "test")
}


def payoff(material: str, thing: str) -> float:
    """Chance that an arm pays."""
    return 1 / (1 + math.exp(-(MATERIALS[material] + THINGS[thing] + OFFSET)))


def success_chance(payoffs: list[float]) -> float:
    """Chance that most of these pulls pay.

    >>> round(success_chance([0.9, 0.9, 0.9]), 3)
    0.972
    """
    chances = [1.0]  # by number of pulls that paid
    for chance in payoffs:
        paid = [0.0, *(c * chance for c in chances)]
        chances = [
            a + b for a, b in zip(paid, [*(c * (1 - chance) for c in chances), 0.0], strict=True)
        ]
    return sum(c for number, c in enumerate(chances) if 2 * number > len(payoffs))


class Bandit(Game):
    """One task: its arms, and how many pulls there are."""

    name = "bandit"
    system = "Pull the arm that pays most often."
    tools = (make_tool("pull", "arm"),)
    max_turns = 6

    @classmethod
    def draw(cls, rng: random.Random, split: str) -> Spec | None:
        shifted = split == SHIFTED
        pool = COMBINATIONS["test" if shifted else split]
        arms = rng.sample(pool, 4 if shifted else 3)
        first, second = sorted((payoff(*arm) for arm in arms), reverse=True)[:2]
        if first < SMALLEST_BEST or (first - second < SMALLEST_GAP) != shifted or first == second:
            return None
        return {"arms": [list(arm) for arm in arms], "pulls": rng.choice([1, 3])}

    @classmethod
    def cohort(cls, spec: Spec) -> str:
        return "one-pull" if spec["pulls"] == 1 else "three-pulls"

    @classmethod
    def split_of(cls, spec: Spec) -> str:
        """All arms of a task are of one split."""
        splits = {hashed_split(" ".join(arm)) for arm in spec["arms"]}
        return splits.pop() if len(splits) == 1 else ""

    def __init__(self, spec: Spec, seed: int) -> None:
        self.arms: dict[str, tuple[str, str]] = dict(
            zip(ARMS, map(tuple, spec["arms"]), strict=False)
        )
        self.pulls = spec["pulls"]
        self.paid: list[bool] = []
        rng = random.Random(f"bandit/{seed}")
        self._luck = [rng.random() for _ in range(self.pulls)]
        """The same seed has the same luck, whichever arms are pulled."""

    def begin(self) -> str:
        arms = " ".join(f"{arm} {' '.join(words)}." for arm, words in self.arms.items())
        return f"{arms} {self.pulls} left."

    def act(self, action: Action) -> Outcome:
        words = self.arms[read_argument(action, "arm", list(self.arms))]
        self.paid.append(self._luck[len(self.paid)] < payoff(*words))
        said = "paid." if self.paid[-1] else "empty."
        left = self.pulls - len(self.paid)
        if left:
            return Outcome(observation=f"{said} {left} left.")
        reward = float(2 * sum(self.paid) > self.pulls)
        return Outcome(observation=f"{said} done.", reward=reward, end="terminated")

    def best(self) -> Action:
        return Action("pull", {"arm": max(self.arms, key=lambda arm: payoff(*self.arms[arm]))})

    def careless(self, rng: random.Random) -> Action:
        return Action("pull", {"arm": rng.choice(list(self.arms))})

    def think(self, action: Action) -> str:
        rated = " ".join(f"{arm} {_rate(payoff(*words))}." for arm, words in self.arms.items())
        return f"{rated} pull {action.arguments['arm']}."

    def state(self) -> dict[str, Any]:
        return {"paid": sum(self.paid), "pulls": len(self.paid)}


def _rate(chance: float) -> str:
    return "good" if chance > 0.6 else "fair" if chance > 0.35 else "poor"
