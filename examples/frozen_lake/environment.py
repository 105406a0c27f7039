"""Map -> text observations, moves, reward: gymnasium's FrozenLake-v1 for an agent that reads text.

The ice is not slippery, so a map is solved by walking around its holes. Maps come from gymnasium's
own generator; the map itself decides which split it belongs to, so no map is ever in two splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import gymnasium
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

NAME = "FrozenLake-v1"
MAP_SIZE = 4
FROZEN_SHARE = 0.7
"""Chance that a cell is ice and not a hole, before unsolvable maps are thrown away."""
MAX_MOVES = 12
MOST_DRAWS = 20_000
"""Maps generated at most when different ones of a split are asked for."""
DIRECTIONS = {"left": 0, "down": 1, "right": 2, "up": 3}
"""Direction -> gymnasium's action number."""
OFFSETS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""Direction -> change of (row, column), in the order observations name them."""
CELLS = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}
SPLITS = ("train", "train", "test", "warmup", "tuning")
"""A map's hash picks one of these. The demo's settings were chosen on `tuning`, never on `test`."""

Map = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one move led to."""

    observation: str
    """What the agent reads next."""
    reward: float
    """1 on reaching the goal, else 0."""
    end: str | None
    """None while the run goes on, `terminated` at the goal or in a hole, `truncated` at the cap."""


class FrozenLake:
    """One run on one map.

    >>> lake = FrozenLake(("SF", "HG"), max_moves=4)
    >>> lake.observe()
    'at 0 0. up wall. right ice. down hole. left wall.'
    >>> lake.move("right").observation
    'at 0 1. up wall. right wall. down goal. left ice.'
    >>> lake.move("down")
    Outcome(observation='You reached the goal.', reward=1.0, end='terminated')
    """

    def __init__(self, lake_map: Map, *, max_moves: int = MAX_MOVES) -> None:
        self._map = lake_map
        self._env = gymnasium.make(
            NAME, desc=list(lake_map), is_slippery=False, max_episode_steps=max_moves
        )
        self._env.reset(seed=0)
        self.row, self.column = 0, 0

    def observe(self) -> str:
        """Where the agent stands and what lies around it."""
        return f"at {self.row} {self.column}. " + " ".join(
            f"{direction} {cell}." for direction, cell in self.neighbours().items()
        )

    def neighbours(self) -> dict[str, str]:
        """Direction -> wall | ice | hole | goal."""
        return {
            direction: _name_cell(self._map, self.row + down, self.column + right)
            for direction, (down, right) in OFFSETS.items()
        }

    def move(self, direction: str) -> Outcome:
        """One step on the ice; against a wall the agent stays where it is.

        Raises:
            ValueError: `direction` is not one of up, right, down, left.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is not one of {', '.join(OFFSETS)}")
        place, reward, terminated, truncated, _ = self._env.step(DIRECTIONS[direction])
        self.row, self.column = divmod(int(place), len(self._map[0]))
        if terminated and reward:
            return Outcome(observation="You reached the goal.", reward=1.0, end="terminated")
        if terminated:
            return Outcome(observation="You fell into a hole.", reward=0.0, end="terminated")
        if truncated:
            return Outcome(observation="No moves are left.", reward=0.0, end="truncated")
        return Outcome(observation=self.observe(), reward=0.0, end=None)


def generate_maps(split: str, count: int, seed: int) -> list[Map]:
    """`count` different solvable maps of a split; the same seed gives the same maps.

    Raises:
        ValueError: the split does not exist, or has fewer maps than asked for.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(sorted(set(SPLITS)))}")
    found: dict[Map, None] = {}
    first = seed * 1_000_003
    for number in range(first, first + MOST_DRAWS):
        if len(found) == count:
            return list(found)
        lake_map = tuple(generate_random_map(MAP_SIZE, FROZEN_SHARE, seed=number))
        if split_of(lake_map) == split:
            found[lake_map] = None
    raise ValueError(f"{count} maps of split {split!r} were asked for; {len(found)} were found")


def split_of(lake_map: Map) -> str:
    """The one split that a map belongs to."""
    return SPLITS[blake2b("".join(lake_map).encode()).digest()[0] % len(SPLITS)]


def best_moves(lake_map: Map) -> dict[tuple[int, int], str]:
    """Cell -> first move of a shortest way to the goal, for every cell that has one."""
    goal = next((row, line.index("G")) for row, line in enumerate(lake_map) if "G" in line)
    moves: dict[tuple[int, int], str] = {}
    reached, queue = {goal}, [goal]
    for cell in queue:  # grows while it is walked: breadth-first, backwards from the goal
        for direction, previous in _cells_before(cell):
            if previous not in reached and _name_cell(lake_map, *previous) == "ice":
                reached.add(previous)
                moves[previous] = direction
                queue.append(previous)
    return moves


def _cells_before(cell: tuple[int, int]) -> Iterator[tuple[str, tuple[int, int]]]:
    for direction, (down, right) in OFFSETS.items():
        yield direction, (cell[0] - down, cell[1] - right)


def _name_cell(lake_map: Map, row: int, column: int) -> str:
    if not (0 <= row < len(lake_map) and 0 <= column < len(lake_map[0])):
        return "wall"
    return CELLS[lake_map[row][column]]
