"""What a foreign loop asks of the evaluated model is recorded; what it asks of others is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.utils import suppress_instrumentation

__all__ = ["draw_seed", "not_recorded", "recorded", "seeded"]

_SEEDS: Final = otel_context.create_key("starpo-run-seeds")

not_recorded = suppress_instrumentation


@contextmanager
def recorded() -> Iterator[None]:
    """Within `not_recorded`: record again."""
    context = otel_context.get_current()
    for key in (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"):  # both are set
        context = otel_context.set_value(key, None, context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A run: its calls are those whose `draw_seed` is not None."""
    token = otel_context.attach(otel_context.set_value(_SEEDS, [seed]))
    try:
        yield
    finally:
        otel_context.detach(token)


def draw_seed() -> int | None:
    """Seed of the next call of the run that goes on here; None outside of one."""
    seeds = otel_context.get_value(_SEEDS)
    if not isinstance(seeds, list):
        return None
    seeds[0] += 1
    return (seeds[0] - 1) % 2**31
