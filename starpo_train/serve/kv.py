"""Attention keys and values of the rows being decoded, and of finished ones worth keeping.

Shapes: S slots, H key/value heads, T positions, D head size, B rows of one forward pass, Q new
tokens of each. Rows are left-aligned: token t of a row lies at position t of its slot, whatever
its neighbours' lengths, so rows join and leave without moving the others.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

Row = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values (H, T, D) of each layer."""


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `keys` and `values` of shape (S, H, T, D)."""

    keys: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self) -> None:
        super().__init__()
        self.first_slot = 0
        self.starts_B: torch.Tensor = torch.zeros(0, dtype=torch.long)
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Remember dtype, device and sizes."""
        for name, states in (("keys", key_states), ("values", value_states)):
            setattr(self, name, states.new_zeros(0, states.shape[1], 0, states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, Q, D) new states behind each row's start, return all up to `length`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_rows, _, num_new, _ = key_states.shape
        self.reserve(self.first_slot + num_rows, self.length)
        rows = slice(self.first_slot, self.first_slot + num_rows)
        if num_new == 1:
            slots_B = torch.arange(self.first_slot, rows.stop)
            self.keys[slots_B, :, self.starts_B] = key_states[:, :, 0]
            self.values[slots_B, :, self.starts_B] = value_states[:, :, 0]
        else:
            for row, start in enumerate(self.starts_B.tolist()):
                place = (self.first_slot + row, slice(None), slice(start, start + num_new))
                self.keys[place] = key_states[row]
                self.values[place] = value_states[row]
        return self.keys[rows, :, : self.length], self.values[rows, :, : self.length]

    def reserve(self, num_slots: int, length: int) -> None:
        """Grow to at least this many slots and positions, by doubling."""
        slots, heads, positions, _ = self.keys.shape
        if num_slots <= slots and length <= positions:
            return
        grown_slots = slots if num_slots <= slots else max(num_slots, 2 * slots)
        grown_positions = positions if length <= positions else max(length + 64, 2 * positions)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(grown_slots, heads, grown_positions, old.shape[3])
            new[:slots, :, :positions] = old
            setattr(self, name, new)

    def get_seq_length(self) -> int:
        """Positions in use, of the longest row."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key/value length, offset); masks are built by `SlotCache` and not from these."""
        return self.length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class SlotCache(Cache):
    """Keys and values of every layer, row by row."""

    def __init__(self) -> None:
        self.slot_layers: list[SlotLayer] = []
        super().__init__(layers=self.slot_layers)  # pyright: ignore[reportArgumentType]
        self._plan: tuple[int, torch.Tensor, int] = (0, torch.zeros(0, dtype=torch.long), 0)

    def plan(self, first_slot: int, starts_B: torch.Tensor, num_new: int) -> torch.Tensor:
        """Say where the next forward pass writes -> its additive attention mask (B, 1, Q, T).

        Row b's new tokens take positions starts_B[b].. of slot first_slot + b, and see what lies
        at or before themselves.
        """
        length = int(starts_B.max()) + num_new
        self._plan = (first_slot, starts_B, length)
        for layer in self.slot_layers:
            self._apply(layer)
        query_BQ = starts_B[:, None] + torch.arange(num_new)
        hidden_BQT = torch.arange(length) > query_BQ[:, :, None]
        return torch.zeros(hidden_BQT.shape).masked_fill_(hidden_BQT, -torch.inf)[:, None]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's new keys and values (B, H, Q, D) -> all of the rows' (B, H, T, D)."""
        while len(self.slot_layers) <= layer_idx:
            layer = SlotLayer()
            self._apply(layer)
            self.slot_layers.append(layer)
        return self.slot_layers[layer_idx].update(key_states, value_states)

    def _apply(self, layer: Any) -> None:
        layer.first_slot, layer.starts_B, layer.length = self._plan

    def read(self, slot: int, length: int) -> Row:
        """A copy of one row: keys and values (H, T, D) of each layer."""
        return [
            (layer.keys[slot, :, :length].clone(), layer.values[slot, :, :length].clone())
            for layer in self.slot_layers
        ]

    def write(self, slot: int, row: Row, length: int) -> None:
        """Put the first `length` positions of a row that `read` gave into a slot."""
        for layer, (keys, values) in zip(self.slot_layers, row, strict=True):
            layer.reserve(slot + 1, length)
            layer.keys[slot, :, :length] = keys[:, :length]
            layer.values[slot, :, :length] = values[:, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row over another."""
        for layer in self.slot_layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    ids_T: npt.NDArray[np.int32]
    row: Row
    num_bytes: int


class PrefixStore:
    """Rows of finished answers, so that the next turn computes only what is new.

    Bounded by `max_bytes`; the least recently used row goes first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._next_key = 0
        self._kept: OrderedDict[int, _Kept] = OrderedDict()

    def find(self, ids: list[int]) -> tuple[int, Row]:
        """Longest beginning shared with a kept row -> (its length, the row)."""
        ids_T = np.asarray(ids, dtype=np.int32)
        best_length, best_key = 0, None
        for key, kept in self._kept.items():
            length = _common_length(ids_T, kept.ids_T)
            if length > best_length:
                best_length, best_key = length, key
        if best_key is None:
            return 0, []
        self._kept.move_to_end(best_key)
        return best_length, self._kept[best_key].row

    def keep(self, ids: list[int], row: Row) -> None:
        """Keep a row; rows that it extends are dropped."""
        ids_T = np.asarray(ids, dtype=np.int32)
        for key, kept in list(self._kept.items()):
            if _common_length(ids_T, kept.ids_T) == len(kept.ids_T):
                self._num_bytes -= self._kept.pop(key).num_bytes
        num_bytes = sum(keys.nbytes + values.nbytes for keys, values in row)
        self._kept[self._next_key] = _Kept(ids_T=ids_T, row=row, num_bytes=num_bytes)
        self._next_key += 1
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= dropped.num_bytes


def _common_length(left_T: npt.NDArray[np.int32], right_T: npt.NDArray[np.int32]) -> int:
    """Length of the common beginning of two id vectors."""
    length = min(len(left_T), len(right_T))
    different_T = left_T[:length] != right_T[:length]
    first = int(different_T.argmax()) if length else 0
    return first if length and different_T[first] else length
