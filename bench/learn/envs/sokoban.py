"""A walled room, one box -> moves -> is the box on the goal? Rooms are made by playing backwards.

The room is 6x6 with its outer wall; only the 4x4 inside is described. A box in a corner stays
there: the run goes on, but nothing can be won any more.
"""

import random
from functools import lru_cache
from typing import Any

from learn.envs.base import SHIFTED, Action, Game, Outcome, Spec, make_tool, read_argument

SIZE = 4
OFFSETS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
COMPASS = {"up": "north", "right": "east", "down": "south", "left": "west"}
"""Words for the box's way, so that it is not taken for the player's."""
FEWEST_MOVES, FAR, SHIFTED_MOVES = 1, 4, 6
"""Moves that a task needs at least; from `FAR` on it is in the cohort `far`, from
`SHIFTED_MOVES` on it is a `shifted` task."""
NEVER = 99

Cell = tuple[int, int]
Position = tuple[Cell, Cell]
"""Where the player and where the box is."""


class Sokoban(Game):
    """One room."""

    name = "sokoban"
    system = "Push the box onto the goal."
    tools = (make_tool("move", "direction"),)
    max_turns = 8

    @classmethod
    def draw(cls, rng: random.Random, split: str) -> Spec | None:
        cells = [(row, column) for row in range(SIZE) for column in range(SIZE)]
        walls = frozenset(rng.sample(cells, rng.randint(0, 3)))
        goal = rng.choice([cell for cell in cells if cell not in walls])
        shifted = split == SHIFTED
        least, most = (
            (SHIFTED_MOVES, cls.max_turns - 1) if shifted else (FEWEST_MOVES, SHIFTED_MOVES - 1)
        )
        by_moves: dict[int, list[Position]] = {}
        for position, moves in moves_to_go(walls, goal).items():
            if least <= moves <= most:
                by_moves.setdefault(moves, []).append(position)
        if not by_moves:
            return None
        player, box = rng.choice(by_moves[rng.choice(sorted(by_moves))])
        return {
            "room": ["".join("#" if (r, c) in walls else "." for c in range(SIZE)) for r in range(SIZE)],
            "goal": list(goal),
            "player": list(player),
            "box": list(box),
        }  # fmt: skip

    @classmethod
    def cohort(cls, spec: Spec) -> str:
        game = cls(spec, 0)
        return "near" if game.moves_left() < FAR else "far"

    def __init__(self, spec: Spec, seed: int) -> None:
        del seed  # nothing here is left to chance
        self._room = spec["room"]
        self._walls = frozenset(
            (r, c) for r, row in enumerate(self._room) for c, cell in enumerate(row) if cell == "#"
        )
        self.goal: Cell = tuple(spec["goal"])
        self.position: Position = (tuple(spec["player"]), tuple(spec["box"]))
        self._moves = 0

    def begin(self) -> str:
        marks: dict[Cell, str] = {self.goal: "G", self.position[0]: "P", self.position[1]: "B"}
        rows = [
            " ".join(marks.get((r, c)) or str(cell) for c, cell in enumerate(row))
            for r, row in enumerate(self._room)
        ]
        return "\n".join([*rows, self._observe()])

    def act(self, action: Action) -> Outcome:
        direction = read_argument(action, "direction", list(OFFSETS))
        self._moves += 1
        self.position = move(self._walls, self.position, direction)
        if self.position[1] == self.goal:
            return Outcome(observation="The box is on the goal.", reward=1.0, end="terminated")
        if self._moves >= self.max_turns:
            return Outcome(observation="No moves are left.", end="truncated")
        return Outcome(observation=self._observe())

    def moves_left(self) -> int:
        """Moves that are needed at least; `NEVER` when the box is stuck."""
        return moves_to_go(self._walls, self.goal).get(self.position, NEVER)

    def best(self) -> Action:
        return Action("move", {"direction": self._best_from(self.position)})

    def careless(self, rng: random.Random) -> Action:
        return Action("move", {"direction": rng.choice(list(OFFSETS))})

    def think(self, action: Action) -> str:
        where = self._next_push()
        plan = f"push {COMPASS[where]}." if where else "stuck."
        return f"{plan} go {action.arguments['direction']}."

    def state(self) -> dict[str, Any]:
        player, box = self.position
        return {"player": list(player), "box": list(box), "stuck": self.moves_left() == NEVER}

    def _best_from(self, position: Position) -> str:
        to_go = moves_to_go(self._walls, self.goal)
        return min(OFFSETS, key=lambda d: to_go.get(move(self._walls, position, d), NEVER))

    def _next_push(self) -> str | None:
        """The direction in which a best way pushes the box next."""
        position = self.position
        for _ in range(self.moves_left() if self.moves_left() < NEVER else 0):
            direction = self._best_from(position)
            after = move(self._walls, position, direction)
            if after[1] != position[1]:
                return direction
            position = after
        return None

    def _observe(self) -> str:
        player, box = self.position
        around = " ".join(f"{d} {self._name(step(player, d))}." for d in OFFSETS)
        goal = " ".join(COMPASS.get(word, word) for word in tell_way(box, self.goal).split())
        return f"{around} box {tell_way(player, box)}. goal {goal}."

    def _name(self, cell: Cell) -> str:
        if cell == self.position[1]:
            return "box"
        return "wall" if is_wall(self._walls, cell) else "floor"


def step(cell: Cell, direction: str, length: int = 1) -> Cell:
    """The cell in a direction."""
    down, right = OFFSETS[direction]
    return cell[0] + length * down, cell[1] + length * right


def tell_way(start: Cell, end: Cell) -> str:
    """How far it is, in words.

    >>> tell_way((0, 0), (2, 1)), tell_way((3, 3), (3, 2))
    ('down 2 right 1', 'left 1')
    """
    down, right = end[0] - start[0], end[1] - start[1]
    ways = [
        ("down" if down > 0 else "up", abs(down)),
        ("right" if right > 0 else "left", abs(right)),
    ]
    return " ".join(f"{way} {length}" for way, length in ways if length)


def is_wall(walls: frozenset[Cell], cell: Cell) -> bool:
    """Whether nobody can stand there."""
    return cell in walls or not (0 <= cell[0] < SIZE and 0 <= cell[1] < SIZE)


def move(walls: frozenset[Cell], position: Position, direction: str) -> Position:
    """Where a move leads; against a wall, or a box that cannot move, everything stays."""
    player, box = position
    target = step(player, direction)
    if is_wall(walls, target):
        return position
    if target != box:
        return target, box
    pushed = step(box, direction)
    return position if is_wall(walls, pushed) else (target, pushed)


@lru_cache(maxsize=4096)
def moves_to_go(walls: frozenset[Cell], goal: Cell) -> dict[Position, int]:
    """Position -> moves to the solution, played backwards; positions without one are not there."""
    cells = [(r, c) for r in range(SIZE) for c in range(SIZE) if (r, c) not in walls]
    found: dict[Position, int] = {(cell, goal): 0 for cell in cells if cell != goal}
    queue = list(found)
    for position in queue:  # grows while it is walked
        player, box = position
        for direction in OFFSETS:
            behind = step(player, direction, -1)
            before = [(behind, box)] if behind != box else []
            if step(player, direction) == box:  # the box may have been pulled along
                before.append((behind, player))
            for earlier in before:
                if earlier not in found and not is_wall(walls, behind):
                    found[earlier] = found[position] + 1
                    queue.append(earlier)
    return found
