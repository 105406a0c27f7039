"""Sizes of what a step computes -> the passes of each rank, balanced.

Ranks meet in every layer of every pass, so a pass takes as long as its largest part: each rank
has the same number of passes, and the parts of one pass are of like size.
"""

from collections.abc import Sequence


def deal_units(
    sizes: Sequence[int], *, tokens_per_pack: int, num_ranks: int
) -> list[list[list[int]]]:
    """Sizes in tokens -> for each rank, for each pass, positions of the units in it.

    Largest first, each into the emptiest pack, as in Graham's LPT rule, with as few passes as keep
    packs within the budget; a unit above it gets a pack of its own. A pack may be empty. Deterministic.

    >>> deal_units([5, 4, 3, 3], tokens_per_pack=8, num_ranks=2)
    [[[0, 3]], [[1, 2]]]
    """
    num_passes = max(1, -(-sum(sizes) // (num_ranks * tokens_per_pack)))
    while True:
        packs, loads = _fill(sizes, num_packs=num_ranks * num_passes)
        has_room = all(
            load <= tokens_per_pack or len(pack) <= 1
            for pack, load in zip(packs, loads, strict=True)
        )
        if has_room or num_passes >= len(sizes):
            break
        num_passes += 1
    order = sorted(range(len(packs)), key=lambda i: (-loads[i], i))
    return [[packs[i] for i in order[rank::num_ranks]] for rank in range(num_ranks)]


def count_longest(dealt: Sequence[Sequence[Sequence[int]]], sizes: Sequence[int]) -> int:
    """Tokens that all ranks wait for: of each pass, those of its largest part."""
    loads = [[sum(sizes[unit] for unit in pack) for pack in own] for own in dealt]
    return sum(max(parts) for parts in zip(*loads, strict=True))


def _fill(sizes: Sequence[int], *, num_packs: int) -> tuple[list[list[int]], list[int]]:
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    loads = [0] * num_packs
    for unit in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        emptiest = loads.index(min(loads))
        packs[emptiest].append(unit)
        loads[emptiest] += sizes[unit]
    return packs, loads
