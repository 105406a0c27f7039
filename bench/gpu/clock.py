"""Work -> seconds and bytes of one device."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(work: Callable[[], Any], *, device: str, repeats: int, warmups: int = 2) -> list[float]:
    """Seconds of each repeat, after the warm-ups."""
    for _ in range(warmups):
        work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started_s = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started_s)
    return seconds


def measure_peak_mib(work: Callable[[], Any], *, device: str) -> float | None:
    """MiB that work holds at most beyond what was held before; None where it cannot be asked."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def free(device: str) -> None:
    """Give cached memory back, so that one part's peak is not another's."""
    import gc

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def summarize(seconds: list[float]) -> dict[str, float]:
    return {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def measure_matmul_ceiling(*, device: str) -> float:
    """Floating point operations a second of an 8192 x 8192 x 8192 bfloat16 product."""
    size = 8192 if device == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = measure(lambda: left @ right, device=device, repeats=20, warmups=5)
    return 2 * size**3 / median(seconds)
