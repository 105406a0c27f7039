"""Calls and steps of one trajectory -> their order, where no step numbers were recorded.

Start time decides, then history length; but a call whose prompt holds another call's answer comes
after it, and a child after its parent, even when clocks of different machines disagree.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedItem:
    """A call or step to be ordered."""

    key: tuple[int, int, str, str]
    """(start_ns, history length, trace id, span id): the order without causes."""
    parent: int | None = None
    """Position of the nearest call or step above it in the span tree."""
    input_node: str | None = None
    """Message node that a call's prompt ends at."""
    output_node: str | None = None
    """Message node of a call's answer."""
    earlier: tuple[int, ...] = ()
    """Positions before it by their numbers; these say nothing about clocks."""


def order_items(
    items: Sequence[OrderedItem], node_parents: Mapping[str, str | None]
) -> tuple[list[int], set[int]]:
    """Items, and the parent of each message node -> positions in order, and skewed positions.

    Skewed are those whose start time alone would have put them before their cause, and those
    that are causes of each other.
    """
    causes = _find_causes(items, node_parents)
    skewed = {
        i
        for i, of_item in enumerate(causes)
        if any(items[cause].key[0] > items[i].key[0] for cause in of_item)
    }
    causes = [
        of_item | {cause for cause in item.earlier if cause != i}
        for i, (item, of_item) in enumerate(zip(items, causes, strict=True))
    ]
    num_open = [len(of_item) for of_item in causes]
    effects: dict[int, list[int]] = defaultdict(list)
    for i, of_item in enumerate(causes):
        for cause in of_item:
            effects[cause].append(i)
    heap = [(item.key, i) for i, item in enumerate(items) if not num_open[i]]
    heapify(heap)
    order = []
    while heap:
        _, i = heappop(heap)
        order.append(i)
        for effect in effects[i]:
            num_open[effect] -= 1
            if not num_open[effect]:
                heappush(heap, (items[effect].key, effect))
    contradictory = sorted(
        (i for i, left in enumerate(num_open) if left), key=lambda i: items[i].key
    )
    return order + contradictory, skewed | set(contradictory)


def _find_causes(
    items: Sequence[OrderedItem], node_parents: Mapping[str, str | None]
) -> list[set[int]]:
    sampled_by: dict[str, int] = {}
    for i, item in enumerate(items):
        if item.output_node is not None:
            other = sampled_by.setdefault(item.output_node, i)
            if item.key < items[other].key:
                sampled_by[item.output_node] = i
    nearest: dict[str, int | None] = {}
    causes: list[set[int]] = []
    for i, item in enumerate(items):
        found = {item.parent, _nearest_sampled(item.input_node, sampled_by, node_parents, nearest)}
        causes.append({cause for cause in found if cause is not None and cause != i})
    return causes


def _nearest_sampled(
    node: str | None,
    sampled_by: Mapping[str, int],
    node_parents: Mapping[str, str | None],
    nearest: dict[str, int | None],
) -> int | None:
    path = []
    found = None
    while node is not None:
        if node in nearest:
            found = nearest[node]
            break
        path.append(node)
        if node in sampled_by:
            found = sampled_by[node]
            break
        nearest[node] = None  # ends a walk in circles; the true value follows
        node = node_parents.get(node)
    for passed in path:
        nearest[passed] = found
    return found
