"""Rows of one trajectory -> what it saw, thought, did and got, in order, on its branches.

The messages of a trajectory are a graph: a node is a message and all before it. Read in the order of
the turns, each message goes on from the last of a branch, or leaves one further up (an edited history,
a second answer to one prompt), or begins a history of its own (a sub-agent).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import polars as pl

Row = Mapping[str, Any]
Kind = Literal["message", "turn", "state", "reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened."""

    kind: Kind
    """What `row` is."""
    row: Row
    """Row of the table `messages`, `turns`, `states` or `rewards`."""
    branch: int
    """Index of its branch; of the last turn's for a state or reward."""
    node: Row | None = None
    """Of a turn: the message that it sampled."""


@dataclass(slots=True, kw_only=True)
class Branch:
    """Messages that go on from each other."""

    leaves: int | None
    """Entry that it leaves another branch after; None: a beginning of its own."""
    is_torn: bool
    """What it goes on from is not in the dataset."""
    first: int
    """Its first entry."""
    last: int
    """Its last entry that something can go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One trajectory."""

    row: Row
    """Row of the table `trajectories`."""
    entries: tuple[Entry, ...]
    """In the order to read them in."""
    branches: tuple[Branch, ...]
    """In the order in which they begin."""


def tell_story(tables: Mapping[str, pl.DataFrame]) -> Story:
    """Tables filtered to one trajectory -> its story, every row of them once."""
    writer = _Writer(nodes={row["node_id"]: row for row in _rows(tables, "messages", "depth")})
    states = deque(_rows(tables, "states", "step", "time_ns"))
    rewards: dict[int | None, list[Row]] = {}
    for reward in _rows(tables, "rewards", "time_ns"):
        rewards.setdefault(reward["turn"], []).append(reward)
    of_run = rewards.pop(None, [])
    for turn in _rows(tables, "turns", "turn"):
        writer.add_path(turn["input_node"])
        while states and (states[0]["step"] or 0) <= (turn["step"] or 0):
            writer.add("state", states.popleft())
        writer.add_turn(turn)
        for reward in rewards.pop(turn["turn"], ()):
            writer.add("reward", reward)
    writer.add_rest()
    for state in states:
        writer.add("state", state)
    for reward in chain(*rewards.values(), of_run):
        writer.add("reward", reward)
    return Story(
        row=tables["trajectories"].row(0, named=True),
        entries=tuple(writer.entries),
        branches=tuple(writer.branches),
    )


def group_by_turn(story: Story) -> list[tuple[Row | None, list[int]]]:
    """Story -> each turn with the places of what it read, did and got; None: what came after."""
    groups: list[tuple[Row | None, list[int]]] = []
    waiting: list[int] = []
    for place, entry in enumerate(story.entries):
        if entry.kind == "turn":
            groups.append((entry.row, [*waiting, place]))
            waiting = []
        elif entry.kind == "reward" and groups and not waiting and _belongs(entry, groups[-1][0]):
            groups[-1][1].append(place)
        else:
            waiting.append(place)
    return [*groups, (None, waiting)]


def _belongs(reward: Entry, turn: Row | None) -> bool:
    return turn is not None and reward.row["turn"] == turn["turn"]


def _rows(tables: Mapping[str, pl.DataFrame], name: str, *order: str) -> Iterator[dict[str, Any]]:
    return tables[name].sort(*order, nulls_last=False, maintain_order=True).iter_rows(named=True)


@dataclass(slots=True, kw_only=True)
class _Writer:
    """Puts entries one after the other and finds the branch of each."""

    nodes: Mapping[str, Row]
    """Node id -> row."""
    entries: list[Entry] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    """Node id -> the entry that shows it."""
    branch: int = 0
    """Branch of the last message."""

    def add(self, kind: Kind, row: Row) -> None:
        self.entries.append(Entry(kind=kind, row=row, branch=self.branch))

    def add_path(self, node_id: str | None) -> None:
        """Show the messages up to this one that were not shown yet."""
        path: dict[str, None] = {}
        while node_id is not None and node_id in self.nodes:
            if node_id in self.places or node_id in path:
                break
            path[node_id] = None
            node_id = self.nodes[node_id]["parent_id"]
        for each in reversed(path):
            self._add_node(each, "message", self.nodes[each], self.nodes[each]["parent_id"])

    def add_turn(self, turn: Row) -> None:
        """Show what a turn did, where its prompt ends."""
        output, prompt = turn["output_node"], turn["input_node"]
        node = self.nodes.get(output) if output is not None else None
        if output is not None and output not in self.places:
            self._add_node(output, "turn", turn, node["parent_id"] if node else prompt, node)
            return
        # Nothing goes on from a call without an answer, so it makes no branch.
        self.branch = self.entries[self.places[prompt]].branch if prompt in self.places else 0
        self.entries.append(Entry(kind="turn", row=turn, branch=self.branch, node=node))

    def add_rest(self) -> None:
        """Show the messages that no turn read or said."""
        for node_id in self.nodes:
            self.add_path(node_id)

    def _add_node(
        self, node_id: str, kind: Kind, row: Row, parent: str | None, node: Row | None = None
    ) -> None:
        place = len(self.entries)
        leaves = self.places.get(parent) if parent is not None else None
        self.branch = self._find_branch(leaves, place, is_torn=parent is not None)
        self.branches[self.branch].last = place
        self.places[node_id] = place
        self.entries.append(Entry(kind=kind, row=row, branch=self.branch, node=node))

    def _find_branch(self, leaves: int | None, place: int, *, is_torn: bool) -> int:
        if leaves is not None:
            branch = self.entries[leaves].branch
            if self.branches[branch].last == leaves:
                return branch
        is_torn = is_torn and leaves is None
        self.branches.append(Branch(leaves=leaves, is_torn=is_torn, first=place, last=place))
        return len(self.branches) - 1
