"""A wrapped async generator is driven as it was, whether it is recorded or not."""

import asyncio

import pytest
from opentelemetry import context as otel_context

from starpo_trace.capture.patches.scopes import relay_async


class Noted:
    """A scope that notes how it ended."""

    def __init__(self, ends):
        self.context = otel_context.set_value("noted", True)
        self._ends = ends

    def finish(self, error, result=None):
        self._ends.append(error)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_an_async_generator_is_driven_as_it_was(is_recorded):
    """What is sent, thrown and closed reaches it at once."""
    seen, ends = [], []

    async def count():
        try:
            seen.append((yield 1))
            try:
                yield 2
            except LookupError as error:
                seen.append(error)
            yield 3
        finally:
            seen.append("closed")

    async def drive():
        thrown = LookupError()
        relayed = relay_async(lambda: Noted(ends) if is_recorded else None, count())
        assert await anext(relayed) == 1
        assert await relayed.asend("sent") == 2
        assert await relayed.athrow(thrown) == 3
        assert seen == ["sent", thrown]
        await relayed.aclose()
        assert seen == ["sent", thrown, "closed"]

    asyncio.run(drive())
    assert ends == ([None] if is_recorded else [])
