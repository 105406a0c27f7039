"""Tensors that ranks hold in slices <-> one safetensors file per rank, and whole tensors again.

A slice is some rows of a tensor's first dimension, cut as `torch.chunk` does. A file holds a rank's
slices; the layout, which is JSON, says which rows these are, so that any other number of ranks can
read just the rows that it needs. `torch.distributed.checkpoint` would reshard too, but its metadata
is a pickle, and nothing of a checkpoint is ever unpickled.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starpo_train.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one rank holds of a tensor."""

    rows: Tensor
    start: int
    """Position of the first row in the whole tensor."""


def take_slice(tensor: Any) -> Tensor | Slice:
    """A copy on the CPU of what this rank holds of a tensor, which may be all of it."""
    bounds = find_rows(tensor)
    if bounds is None:
        return tensor.detach().cpu()
    return Slice(rows=tensor.to_local().detach().cpu(), start=bounds[0])


def find_rows(tensor: Any) -> tuple[int, int] | None:
    """First row that this rank holds and the one after its last; None: it holds the tensor whole."""
    if not hasattr(tensor, "to_local"):
        return None
    mesh, num_rows = tensor.device_mesh, tensor.shape[0]
    per_rank = -(-num_rows // mesh.size())
    start = min(mesh.get_local_rank() * per_rank, num_rows)
    return start, start + tensor.to_local().shape[0]


def load_like(parameter: Any, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Tensor `name` laid out as a parameter is; of a sharded one, only this rank's rows are read."""
    bounds = find_rows(parameter)
    if bounds is None:
        return tensors[name].to(parameter.device).clone()
    loaded: Any = torch.zeros_like(parameter, requires_grad=False)
    rows = tensors.read_rows(name, *bounds) if isinstance(tensors, SavedTensors) else None
    loaded.to_local().copy_(tensors[name][slice(*bounds)] if rows is None else rows)
    return loaded


class SavedTensors(Mapping[str, Tensor]):
    """Tensors in the files of a checkpoint, read when they are asked for."""

    def __init__(self, files: Sequence[Path], rows: dict[str, list[list[int] | None]]) -> None:
        """`rows` are those of each file, by the name of each tensor that is in slices."""
        from safetensors import safe_open

        self._files: list[Any] = [safe_open(file, framework="pt") for file in files]
        self._rows = rows
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118  no dict

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor."""
        if name in self._rows:
            return self.read_rows(name, 0, self.shape(name)[0])
        return self._file_of[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Every name."""
        return iter(self._file_of)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        own = tuple(self._file_of[name].get_slice(name).get_shape())
        if name not in self._rows:
            return own
        return (max(bounds[1] for bounds in self._rows[name] if bounds), *own[1:])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, from whichever files hold them.

        Raises:
            CheckpointError: some of them are in no file.
        """
        if name not in self._rows:
            return self._file_of[name].get_slice(name)[start:stop]
        parts = []
        for file, bounds in zip(self._files, self._rows[name], strict=True):
            first, last = (max(start, bounds[0]), min(stop, bounds[1])) if bounds else (0, 0)
            if bounds and first < last:
                parts.append(file.get_slice(name)[first - bounds[0] : last - bounds[0]])
        if sum(len(part) for part in parts) != stop - start:
            raise CheckpointError(f"{name!r}: not all of rows {start} to {stop} were saved.")
        if not parts:
            return self._file_of[name].get_slice(name)[0:0]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def save_slices(
    file: Path, tensors: Mapping[str, Tensor | Slice], *, is_first: bool
) -> dict[str, list[int]]:
    """Write a rank's file; returns which rows it holds of each tensor that is in slices.

    Whole tensors are rank 0's, and so are slices of no rows.
    """
    from safetensors.torch import save_file

    held, rows = {}, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Slice):
            if len(tensor.rows) or is_first:
                held[name] = tensor.rows.contiguous()
                rows[name] = [tensor.start, tensor.start + len(tensor.rows)]
        elif is_first:
            held[name] = tensor.contiguous()
    save_file(held, file)
    return rows


def name_files(num_ranks: int) -> list[str]:
    """File of each rank."""
    if num_ranks == 1:
        return ["state.safetensors"]
    return [f"state-{rank + 1:05d}-of-{num_ranks:05d}.safetensors" for rank in range(num_ranks)]
