"""Recipes and a goal -> get and craft -> is the goal item made in time?"""

import random
from typing import Any

from learn.envs.base import SHIFTED, Action, Game, Outcome, Spec, make_tool, read_argument

RAW = ("log", "iron", "gem", "coal", "wool", "sand")
"""What can be got."""
VARIANTS: dict[str, list[list[str]]] = {
    "stick": [["log"], ["log", "coal"]],
    "rope": [["wool"], ["wool", "sand"]],
    "plate": [["iron"], ["iron", "coal"]],
    "glass": [["sand"], ["sand", "coal"]],
    "blade": [["stick", "iron"], ["plate", "gem"], ["plate", "coal"]],
    "bow": [["stick", "wool"], ["rope", "log"], ["rope", "gem"]],
    "lamp": [["glass", "coal"], ["plate", "wool"], ["glass", "gem"]],
    "sail": [["rope", "wool"], ["stick", "sand"], ["rope", "coal"]],
    "sword": [["blade", "gem"], ["blade", "wool"]],
    "boat": [["sail", "log"], ["sail", "iron"]],
}
"""How an item may be made; a task's recipes say which way is right in it."""
MADE = tuple(VARIANTS)
GOALS = {2: ("blade", "bow", "lamp", "sail"), 3: ("sword", "boat")}
"""By depth: crafts that a goal needs one after the other."""
SPARE_TURNS = 1
"""Turns beyond those that the goal needs."""


class TextCraft(Game):
    """One goal, with the recipes for it and some others."""

    name = "textcraft"
    system = "Craft the goal. Get what no recipe makes."
    tools = (make_tool("get", "item"), make_tool("craft", "item"))
    max_turns = 8

    @classmethod
    def draw(cls, rng: random.Random, split: str) -> Spec | None:
        shifted = split == SHIFTED
        depth = 3 if shifted else rng.choice([2, 2, 3])
        goal = rng.choice(GOALS[depth])
        recipes: dict[str, list[str]] = {}
        item: str | None = goal
        while item is not None:  # at most one part of a recipe is crafted itself
            recipes[item] = rng.choice(VARIANTS[item])
            item = next((part for part in recipes[item] if part in VARIANTS), None)
        left = [item for item in MADE if item not in recipes]
        for other in rng.sample(left, 3 if shifted else rng.randint(1, 2)):
            recipes[other] = rng.choice(VARIANTS[other])
        order = rng.sample(list(recipes), len(recipes))
        return {"goal": goal, "recipes": {item: recipes[item] for item in order}}

    @classmethod
    def cohort(cls, spec: Spec) -> str:
        return "depth-3" if spec["goal"] in GOALS[3] else "depth-2"

    def __init__(self, spec: Spec, seed: int) -> None:
        del seed  # nothing here is left to chance
        self.goal = spec["goal"]
        self.recipes: dict[str, list[str]] = dict(spec["recipes"])
        self.held: list[str] = []
        self.turns_left = self._count_needed(self.goal) + SPARE_TURNS

    def begin(self) -> str:
        recipes = " ".join(f"{item} needs {' '.join(p)}." for item, p in self.recipes.items())
        return f"{recipes} goal {self.goal}. {self.turns_left} left."

    def act(self, action: Action) -> Outcome:
        tools = {"get": RAW, "craft": MADE}
        item = read_argument(action, "item", tools[action.tool])
        self.turns_left -= 1
        said = ""
        if action.tool == "get":
            self.held.append(item)
        elif all(part in self.held for part in self.recipes.get(item, ["?"])):
            for part in self.recipes[item]:
                self.held.remove(part)
            self.held.append(item)
        else:
            said = "cannot. "
        if self.goal in self.held:
            return Outcome(observation=f"You made the {item}.", reward=1.0, end="terminated")
        if self.turns_left <= 0:
            return Outcome(observation="No turns are left.", end="truncated")
        held = " ".join(self.held) or "nothing"
        return Outcome(observation=f"{said}have {held}. goal {self.goal}. {self.turns_left} left.")

    def best(self) -> Action:
        target, missing = self._next_target()
        return Action("get", {"item": missing}) if missing else Action("craft", {"item": target})

    def careless(self, rng: random.Random) -> Action:
        """Something that a recipe names, whether or not it is of use now."""
        parts = {part for recipe in self.recipes.values() for part in recipe}
        raw = [Action("get", {"item": item}) for item in RAW if item in parts]
        return rng.choice([*raw, *(Action("craft", {"item": item}) for item in self.recipes)])

    def think(self, action: Action) -> str:
        target, _ = self._next_target()
        return f"{target} needs {' '.join(self.recipes[target])}. {action.tool} {action.arguments['item']}."

    def state(self) -> dict[str, Any]:
        return {"held": list(self.held), "turns_left": self.turns_left}

    def _next_target(self) -> tuple[str, str | None]:
        """The item to craft next, and a raw part that is still missing for it."""
        target, missing = self.goal, self._missing(self.goal)
        while inner := [part for part in missing if part in self.recipes]:
            target = inner[0]
            missing = self._missing(target)
        return target, missing[0] if missing else None

    def _missing(self, item: str) -> list[str]:
        held = list(self.held)
        missing = []
        for part in self.recipes[item]:
            if part in held:
                held.remove(part)
            else:
                missing.append(part)
        return missing

    def _count_needed(self, item: str) -> int:
        """Turns that making an item from nothing takes."""
        if item not in self.recipes:
            return 1
        return 1 + sum(self._count_needed(part) for part in self.recipes[item])
