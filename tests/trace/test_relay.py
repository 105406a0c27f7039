"""Generators of a framework's -> the same, in their scope."""

import asyncio

import pytest
from opentelemetry import context as otel_context

from starpo_trace.capture.patches.scopes import relay, relay_async

KEY = otel_context.create_key("test")


class Scope:
    context = otel_context.set_value(KEY, "scope")
    is_over = False

    def finish(self, error, result=None):
        self.is_over = True


def run_sync(generator):
    scope = Scope()
    seen = [(each, otel_context.get_value(KEY)) for each in relay(scope, generator)]
    return scope, seen


def run_async(generator):
    async def read_all():
        for each in generator:
            yield each

    async def collect():
        scope = Scope()
        stream = relay_async(scope, read_all())
        return scope, [(each, otel_context.get_value(KEY)) async for each in stream]

    return asyncio.run(collect())


@pytest.mark.parametrize("run", [run_sync, run_async])
def test_what_a_generator_has_open_stays_open_for_it(run):
    """A Context that it attached over a `yield` is current in its next step, and nowhere else."""

    def generate():
        yield otel_context.get_value(KEY)
        token = otel_context.attach(otel_context.set_value(KEY, "its own"))
        yield otel_context.get_value(KEY)
        yield otel_context.get_value(KEY)
        otel_context.detach(token)
        yield otel_context.get_value(KEY)

    scope, seen = run(generate())
    assert seen == [(each, None) for each in ("scope", "its own", "its own", "scope")]
    assert scope.is_over
    assert otel_context.get_value(KEY) is None
