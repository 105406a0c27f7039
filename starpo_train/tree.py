"""Rows of tokens -> a tree of them, in which a prefix that rows share lies once.

Rows that begin alike (attempts at one task, branches of one run) share the nodes of their prefix. The
tree lies in preorder: a node, then all below it. So a token sees another before it if, and only if,
that one's subtree has not ended: `key <= query < subtree_end[key]`.

Suffixes: T tokens of the tree, M nodes, R rows, L tokens of one row.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeLayout:
    """Where nodes lie; all that attention needs to know."""

    lengths_M: tuple[int, ...]
    """Tokens of each node, in preorder; they add up to T."""
    ends_M: tuple[int, ...]
    """Where in T each node's subtree ends."""

    depth: int
    """Tokens of the longest row."""
    is_flat: bool
    """Whether nothing is shared: every node is a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """Rows laid out as a tree.

    Rows `a b c d` and `a b e`::

        input_ids_T     a b | c d | e
        positions_T     0 1 | 2 3 | 2
        lengths_M       2, 2, 1        ends_M  5, 4, 5
        places          0 1 2 3  and  0 1 4
    """

    input_ids_T: np.ndarray
    positions_T: np.ndarray
    """Place of each token in its row."""
    layout: TreeLayout
    places: list[np.ndarray]
    """For each row as given, [L]: where in T its tokens are."""


def make_layout(lengths: Sequence[int], ends: Sequence[int], *, depth: int) -> TreeLayout:
    """Nodes in preorder -> their layout."""
    return TreeLayout(
        lengths_M=tuple(lengths),
        ends_M=tuple(ends),
        depth=depth,
        is_flat=list(ends) == np.cumsum(lengths).tolist(),
    )


def build_tree(rows: Sequence[np.ndarray], *, share: bool = True) -> TokenTree:
    """Ids of rows -> their tree; every distinct prefix once. Without `share`, one row after another."""
    if not share:
        return _lay_flat(rows)
    order, shared = sort_rows(rows)
    places: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(rows)
    ids, positions, lengths, ends = [], [], [], []
    num_tokens = 0
    path: list[tuple[int, int, int]] = []  # open nodes: (index, depth at its start, place in T)
    for rank, (row, num_shared) in enumerate(zip(order, shared, strict=True)):
        while path and path[-1][1] >= num_shared:
            ends[path.pop()[0]] = num_tokens
        cuts = _find_cuts(shared, rank, len(rows[row]))
        for begin, end in itertools.pairwise(cuts):
            path.append((len(lengths), begin, num_tokens))
            ids.append(rows[row][begin:end])
            positions.append(np.arange(begin, end))
            lengths.append(end - begin)
            ends.append(0)
            num_tokens += end - begin
        parts = [np.arange(lengths[node]) + place for node, _, place in path]
        places[row] = np.concatenate(parts) if parts else places[row]
    for node, _, _ in path:
        ends[node] = num_tokens
    return TokenTree(
        input_ids_T=np.concatenate(ids),
        positions_T=np.concatenate(positions),
        layout=make_layout(lengths, ends, depth=max(len(row) for row in rows)),
        places=places,
    )


def sort_rows(rows: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """Rows in order of their ids, and how many tokens each shares with the one before it."""
    keys = [row.astype(">i8").tobytes() for row in rows]  # big-endian bytes sort as the ids do
    order = sorted(range(len(rows)), key=lambda i: (keys[i], i))
    shared = [0]
    for before, row in itertools.pairwise(order):
        shared.append(count_shared(rows[before], rows[row]))
    return order, shared[: len(order)]


def count_shared(left: np.ndarray, right: np.ndarray) -> int:
    """How many tokens two rows begin alike."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(differs.argmax()) if differs.any() else length


def _find_cuts(shared: Sequence[int], rank: int, length: int) -> list[int]:
    """Depths at which a row's new part is cut: where a later row leaves it."""
    begin = shared[rank]
    cuts, least = {begin, length}, length
    for later in shared[rank + 1 :]:
        least = min(least, later)
        if least <= begin:
            break
        cuts.add(least)
    return sorted(cuts) if length > begin else []


def _lay_flat(rows: Sequence[np.ndarray]) -> TokenTree:
    lengths = [len(row) for row in rows]
    ends = np.cumsum(lengths)
    return TokenTree(
        input_ids_T=np.concatenate(list(rows)),
        positions_T=np.concatenate([np.arange(length) for length in lengths]),
        layout=make_layout(lengths, ends.tolist(), depth=max(lengths)),
        places=[np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)],
    )
