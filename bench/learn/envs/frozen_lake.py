"""A 4x4 map with holes -> moves -> was the goal reached? As `examples/frozen_lake`, not slippery."""

import random
from functools import lru_cache
from typing import Any

from learn.envs.base import SHIFTED, Action, Game, Outcome, Spec, make_tool, read_argument

SIZE = 4
OFFSETS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""Direction -> change of (row, column), in the order observations name them."""
CELLS = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}
MANY_HOLES = 6
"""Maps with so many holes are `shifted`."""

Cell = tuple[int, int]


class FrozenLake(Game):
    """One map."""

    name = "frozen_lake"
    system = "Cross the frozen lake to the goal G. Avoid the holes H."
    tools = (make_tool("move", "direction"),)
    max_turns = 8

    @classmethod
    def draw(cls, rng: random.Random, split: str) -> Spec | None:
        holes = rng.randint(MANY_HOLES, 8) if split == SHIFTED else rng.randint(1, MANY_HOLES - 1)
        cells = ["F"] * (SIZE * SIZE)
        cells[0], cells[-1] = "S", "G"
        for place in rng.sample(range(1, SIZE * SIZE - 1), holes):
            cells[place] = "H"
        lake = tuple("".join(cells[row : row + SIZE]) for row in range(0, SIZE * SIZE, SIZE))
        if distances(lake).get((0, 0), 99) > cls.max_turns:
            return None
        return {"map": list(lake)}

    @classmethod
    def cohort(cls, spec: Spec) -> str:
        return "few-holes" if "".join(spec["map"]).count("H") < 4 else "many-holes"

    def __init__(self, spec: Spec, seed: int) -> None:
        del seed  # nothing here is left to chance
        self._map = tuple(spec["map"])
        self.cell: Cell = (0, 0)
        self._moves = 0

    def begin(self) -> str:
        return "\n".join([*map(" ".join, self._map), self._observe()])

    def act(self, action: Action) -> Outcome:
        direction = read_argument(action, "direction", list(OFFSETS))
        self._moves += 1
        target = step(self.cell, direction)
        found = name_cell(self._map, target)
        if found != "wall":
            self.cell = target
        if found == "goal":
            return Outcome(observation="You reached the goal.", reward=1.0, end="terminated")
        if found == "hole":
            return Outcome(observation="You fell into a hole.", end="terminated")
        if self._moves >= self.max_turns:
            return Outcome(observation="No moves are left.", end="truncated")
        return Outcome(observation=self._observe())

    def best(self) -> Action:
        ways = distances(self._map)
        return Action(
            "move", {"direction": min(OFFSETS, key=lambda d: ways.get(step(self.cell, d), 99))}
        )

    def careless(self, rng: random.Random) -> Action:
        return Action("move", {"direction": rng.choice(list(OFFSETS))})

    def think(self, action: Action) -> str:
        safe = [d for d, cell in self._neighbours().items() if cell in {"ice", "goal"}]
        return f"safe {' '.join(safe)}. go {action.arguments['direction']}."

    def state(self) -> dict[str, Any]:
        return {"row": self.cell[0], "column": self.cell[1]}

    def _observe(self) -> str:
        around = " ".join(f"{d} {cell}." for d, cell in self._neighbours().items())
        return f"at {self.cell[0]} {self.cell[1]}. {around}"

    def _neighbours(self) -> dict[str, str]:
        return {d: name_cell(self._map, step(self.cell, d)) for d in OFFSETS}


def step(cell: Cell, direction: str) -> Cell:
    """The cell in a direction."""
    down, right = OFFSETS[direction]
    return cell[0] + down, cell[1] + right


def name_cell(lake: tuple[str, ...], cell: Cell) -> str:
    """wall | ice | hole | goal."""
    row, column = cell
    return CELLS[lake[row][column]] if 0 <= row < SIZE and 0 <= column < SIZE else "wall"


@lru_cache(maxsize=4096)
def distances(lake: tuple[str, ...]) -> dict[Cell, int]:
    """Cell -> moves to the goal, for every cell that a way leads from."""
    found = {(SIZE - 1, SIZE - 1): 0}
    queue = list(found)
    for cell in queue:  # grows while it is walked
        for direction in OFFSETS:
            other = step(cell, direction)
            if other not in found and name_cell(lake, other) == "ice":
                found[other] = found[cell] + 1
                queue.append(other)
    return found
