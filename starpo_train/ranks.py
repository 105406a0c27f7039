"""Environment of torchrun -> Ranks: the processes of one run, and what they tell each other.

Only small JSON values and sums pass between ranks here; weights and gradients are `sharding.py`'s.
One process is `ALONE`: it has no process group, and every method gives back what it was given.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from starpo_train.errors import ConfigError, RankError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Position on this machine, which is the number of its CUDA device."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes metrics and checkpoints and talks to people."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """JSON value of each rank, on every rank; floats arrive bit for bit.

        Raises:
            RankError: a rank is gone, or did not answer in time.
        """
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with watch_ranks(self):
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            torch.distributed.all_gather(lengths, torch.tensor([len(own)]))
            longest = int(max(lengths))
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            own = torch.nn.functional.pad(own, (0, longest - len(own)))
            torch.distributed.all_gather(parts, own)
        return [
            json.loads(part[: int(length)].numpy().tobytes())
            for part, length in zip(parts, lengths, strict=True)
        ]

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Each value summed over the ranks, in their order, so that all have the same bits."""
        if self.size == 1:
            return values
        parts = self.gather(values)
        return {name: sum(part[name] for part in parts) for name in values}

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor on the CPU summed over the ranks; the same shape everywhere."""
        if self.size > 1:
            with watch_ranks(self):
                torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:  # noqa: FBT001  as the builtin takes it
        """Whether it holds on some rank."""
        return any(self.gather(flag))

    def agree(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank; where one fails, all do.

        Raises:
            RankError: another rank failed; that one raises what its work raised.
        """
        if self.size == 1:
            return work()
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  raised again below, once the others know
            failure = error
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        failed = [(rank, text) for rank, text in enumerate(self.gather(told)) if text is not None]
        if failure is not None and failed[0][0] == self.rank:
            raise failure
        if failed:
            raise RankError(f"rank {failed[0][0]} failed: {failed[0][1]}") from failure
        return result  # type: ignore[return-value]

    def share(self, work: Callable[[], Any]) -> Any:
        """JSON value of what rank 0 does, on every rank; where that fails, all do."""
        own = self.agree(lambda: work() if self.is_first else None)
        return self.gather(own)[0]

    def join(self, error: Exception) -> Exception:
        """An error that every rank found: itself on rank 0, one to keep silent about elsewhere."""
        return error if self.is_first else RankError(f"rank 0 failed: {error}")


ALONE: Final = Ranks()


class JointStop:
    """A stop request that all ranks see at the same step, whoever got the signal."""

    def __init__(self, stop: Any, ranks: Ranks) -> None:
        self._stop, self._ranks = stop, ranks

    @property
    def requested(self) -> bool:
        """Every rank must ask at the same place."""
        return self._ranks.any(self._stop.requested)


def read_ranks() -> Ranks:
    """What torchrun, or any launcher that sets the same variables, says about this process.

    Raises:
        ConfigError: WORLD_SIZE without the others.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        return ALONE
    missing = [
        name
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if not os.environ.get(name)
    ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {size}, but {', '.join(missing)} is not set; start with torchrun, or "
            "unset WORLD_SIZE."
        )
    return Ranks(rank=int(os.environ["RANK"]), size=size, local_rank=int(os.environ["LOCAL_RANK"]))


@contextmanager
def open_ranks(*, device: str, timeout_s: float) -> Iterator[Ranks]:
    """The one place where a process group begins and ends; one that is there already is used.

    `device` is `model.device`; `timeout_s` is how long a rank waits for the others.
    """
    ranks = read_ranks()
    if ranks.size == 1 or torch.distributed.is_initialized():
        yield ranks
        return
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda and ranks.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local_rank)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=timedelta(seconds=timeout_s),
    )
    has_failed = True
    try:
        yield ranks
        has_failed = False
    finally:
        if not (has_failed and on_cuda):  # NCCL would wait for ranks that are gone
            torch.distributed.destroy_process_group()


@contextmanager
def watch_ranks(ranks: Ranks) -> Iterator[None]:
    """What PyTorch raises when a rank is gone -> RankError, told at once.

    torchrun ends this process within a moment of the other one's end, perhaps before a caller
    could tell it.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.size == 1 or isinstance(error, RankError) or not _is_lost_peer(error):
            raise
        reason = " ".join(str(error).split())[:200]
        message = (
            f"rank {ranks.rank} lost another one, or waited too long for it ({reason}); see what "
            "that one printed, then `starpo-train resume` under torchrun goes on from the last "
            "checkpoint."
        )
        sys.stderr.write(f"error: {message}\n")
        raise RankError(message) from error


def _is_lost_peer(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in text for word in ("gloo", "connection closed", "connection reset", "timed out")
    )
