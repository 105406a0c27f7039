"""A pack that does not fit into memory -> the same work in smaller packs.

A failed backward pass may have left part of its gradients behind, so work is never continued but
undone and begun again, with half the tokens per pack. What fits is kept for the rest of the run.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

import torch

from starpo_train.config import RunConfig
from starpo_train.errors import OutOfMemoryError
from starpo_train.pack import TokenBatch

ResultT = TypeVar("ResultT")

_SIGNS: Final = (
    "DefaultCPUAllocator",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "could not create a memory object",
)
"""What errors say that are no `torch.OutOfMemoryError` and mean one."""


class PackBudget:
    """Tokens per pack: as configured, or what was found to fit."""

    def __init__(self, configured: int, *, found: int | None = None) -> None:
        """`found` is what an earlier life of the run came to."""
        self.configured = configured
        self.tokens_per_pack = configured if found is None else min(configured, found)
        self._reported = self.tokens_per_pack

    @property
    def found(self) -> int | None:
        """Budget that was found to fit; None as long as the configured one does."""
        return self.tokens_per_pack if self.tokens_per_pack < self.configured else None

    def run(
        self,
        work: Callable[[RunConfig], ResultT],
        config: RunConfig,
        *,
        undo: Callable[[], None] = lambda: None,
    ) -> ResultT:
        """Do `work` with the budget in force, halved until it fits; `undo` forgets a failed try.

        Raises:
            OutOfMemoryError: one row alone does not fit, or other processes are in the same step.
        """
        while True:
            train = replace(config.train, tokens_per_pack=self.tokens_per_pack)
            try:
                return work(replace(config, train=train))
            except OutOfMemoryError as error:
                if error.num_rows == 1 or _is_one_of_several():
                    raise
                half = self.tokens_per_pack // 2
                self.tokens_per_pack = half if half < error.num_tokens else error.num_tokens // 2
            # outside the `except`: the error holds the pack's tensors
            undo()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def take_news(self) -> dict[str, int | str] | None:
        """What to tell when the budget has become smaller; once."""
        if self.tokens_per_pack == self._reported:
            return None
        record = {
            "event": "pack_split",
            "tokens_per_pack": self.tokens_per_pack,
            "tokens_per_pack_before": self._reported,
        }
        self._reported = self.tokens_per_pack
        return record


@contextmanager
def explain_out_of_memory(batch: TokenBatch, name_row: Callable[[int], str]) -> Iterator[None]:
    """Turn every way to run out of memory into one error that names the pack.

    `name_row` gives the trajectory of a row.

    Raises:
        OutOfMemoryError: the body ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        names = sorted({name_row(row) for row in batch.rows_R})
        raise OutOfMemoryError(
            _describe(batch, names), num_tokens=batch.num_tokens, num_rows=len(batch.rows_R)
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was short, on the CPU or on a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _describe(batch: TokenBatch, names: list[str]) -> str:
    if len(batch.rows_R) == 1:
        return (
            f"trajectory {names[0]}: a row of {batch.num_tokens:,} tokens does not fit into memory, "
            "and a row is never cut (train.tokens_per_pack cannot help). Set "
            "model.gradient_checkpointing = true, train fewer weights (model.lora_rank), take a "
            "model.device with more memory, or leave the trajectory out."
        )
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (
        f"{len(batch.rows_R)} rows, {batch.num_tokens:,} tokens, do not fit into memory "
        f"(trajectories {', '.join(names[:8])}{more}); lower train.tokens_per_pack, set "
        "model.gradient_checkpointing = true or model.lora_rank, or take a model.device with more "
        "memory."
    )


def _is_one_of_several() -> bool:
    """Whether other processes wait for this one inside a step: then none may begin it again."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    return torch.distributed.get_world_size() > 1
