"""Runs left in any order, by anybody -> no ended run stays current."""

import asyncio
import contextvars
import sys
import threading

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import StatusCode

import starpo_trace
from starpo_trace import semconv
from starpo_trace.testing import MemoryStore, record_spans


def use_tool(name="t"):
    with starpo_trace.step("tool", name):
        return starpo_trace.current_trajectory()


def spans_of(store, record):
    return [span for span in store.spans if span.attributes[semconv.RECORD] == record]


def hold_run(name, scope=None):
    with scope or starpo_trace.trajectory(name, trajectory_id=name) as run:
        use_tool(f"{name}1")
        yield run
        use_tool(f"{name}2")


@pytest.mark.parametrize("first", [0, 1])
def test_interleaved_generators_leave_nothing_behind(first, caplog, monkeypatch):
    """Whichever ends first, the other's run goes on, and nothing is current after both."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    with record_spans() as store:
        generators = [hold_run("a"), hold_run("b")]
        runs = [next(generator) for generator in generators]
        assert list(generators[first]) == []
        assert starpo_trace.current_trajectory() is runs[1 - first]
        assert list(generators[1 - first]) == []
        assert starpo_trace.current_trajectory() is None
        assert not trace.get_current_span().get_span_context().is_valid
        use_tool("outside")
    assert [run.is_finished for run in runs] == [True, True]
    outside = spans_of(store, "step")[-1]
    assert (outside.name, outside.parent) == ("execute_tool outside", None)
    assert semconv.TRAJECTORY_ID not in outside.attributes
    # "b" was entered last, so leaving it first is the proper order
    assert len(caplog.records) == (1 if first == 0 else 0)


def test_a_generator_inside_a_run_gives_it_back():
    """Left out of order, the enclosing run is current again: its steps, its span, its baggage."""
    with record_spans() as store, starpo_trace.trajectory() as outer:
        generators = [hold_run("a"), hold_run("b")]
        for generator in generators:
            next(generator)
        for generator in generators:
            assert list(generator) == []
        assert use_tool("after") is outer
    after = next(span for span in store.spans if span.name.endswith("after"))
    [root] = [s for s in spans_of(store, "trajectory") if s.parent is None]
    assert after.parent.span_id == root.context.span_id


def test_a_context_kept_from_a_run_is_none_of_its_after_the_end():
    """A kept Context leads to the run around it while that lasts; the user's own values stay."""
    key = otel_context.create_key("mine")
    kept = []
    with record_spans() as store:
        with starpo_trace.trajectory() as outer:
            with starpo_trace.trajectory():
                kept.append(otel_context.set_value(key, 5))
            token = otel_context.attach(kept[0])
            assert use_tool("first") is outer
            assert otel_context.get_value(key) == 5
            otel_context.detach(token)
        token = otel_context.attach(kept[0])
        assert use_tool("second") is None
        assert otel_context.get_value(key) == 5
        with starpo_trace.trajectory("next"):
            pass
        otel_context.detach(token)
    first, second = spans_of(store, "step")
    root = next(
        s for s in spans_of(store, "trajectory") if s.attributes[semconv.TRAJECTORY_ID] == outer.id
    )
    assert first.parent.span_id == root.context.span_id
    assert second.parent is None
    [later] = [s for s in spans_of(store, "trajectory") if s.name == "invoke_agent next"]
    assert later.parent is None


def test_a_task_that_outlives_its_run_leaves_it():
    """A worker begun in the first run serves two more: what it does then is of no run."""

    async def play():
        queue = asyncio.Queue()

        async def work():
            while True:
                done = await queue.get()
                done.set_result(use_tool())

        worker, found = None, []
        for _ in range(3):
            async with starpo_trace.trajectory() as run:
                worker = worker or asyncio.create_task(work())
                done = asyncio.get_running_loop().create_future()
                queue.put_nowait(done)
                found.append((run, await done))
        worker.cancel()
        return found

    with record_spans() as store:
        found = asyncio.run(play())
    assert [inside for _, inside in found] == [found[0][0], None, None]
    parents = [span.parent for span in spans_of(store, "step")]
    assert parents[0] is not None
    assert parents[1:] == [None, None]


def test_a_worker_can_serve_each_run_in_its_own_context():
    """A job that brings the Context of its run is a step of it, whoever does it."""

    async def handle():
        return use_tool()

    async def play():
        queue = asyncio.Queue()

        async def work():
            while True:
                context, done = await queue.get()
                done.set_result(await asyncio.create_task(handle(), context=context))

        worker, found = asyncio.create_task(work()), []
        for _ in range(2):
            async with starpo_trace.trajectory() as run:
                done = asyncio.get_running_loop().create_future()
                queue.put_nowait((contextvars.copy_context(), done))
                found.append(await done is run)
        worker.cancel()
        return found

    with record_spans():
        assert asyncio.run(play()) == [True, True]


def test_a_span_of_the_users_that_outlives_the_run_takes_nothing_along():
    """A call under a span begun in the run is no step of it, once the run has ended."""

    async def play(tracer):
        ended = asyncio.Event()

        async def late():
            with tracer.start_as_current_span("mine"):
                await ended.wait()
                return use_tool()

        async with starpo_trace.trajectory():
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        ended.set()
        return await task

    with record_spans() as store:
        assert asyncio.run(play(store.provider.get_tracer("mine"))) is None
    [step] = [span for span in store.spans if span.attributes.get(semconv.RECORD) == "step"]
    assert step.parent is None


def test_an_async_generator_closed_elsewhere_leaves_nothing_behind():
    """Closed by another task, the run ends; where it was entered nothing of it remains."""

    async def agent():
        async with starpo_trace.trajectory():
            yield 1

    async def play():
        iterator = agent()
        await anext(iterator)
        assert starpo_trace.current_trajectory() is not None
        await asyncio.create_task(iterator.aclose())
        return use_tool()

    with record_spans() as store:
        assert asyncio.run(play()) is None
    assert [root[semconv.TRAJECTORY_END] for root in store.select("trajectory")] == ["abandoned"]
    assert [span.parent for span in spans_of(store, "step")] == [None]


@pytest.mark.parametrize("kind", ["trajectory", "step"])
def test_one_scope_serves_many_at_once(kind):
    """Threads, tasks and nested blocks that share a scope object each have an entry of their own."""
    barrier = threading.Barrier(4)

    def work(scope):
        barrier.wait(10)
        with scope, scope:
            barrier.wait(10)

    async def work_async(scope, ready):
        async with scope:
            await ready.wait()

    async def play(scope):
        ready = asyncio.Event()
        tasks = [asyncio.create_task(work_async(scope, ready)) for _ in range(3)]
        await asyncio.sleep(0)
        ready.set()
        await asyncio.gather(*tasks)

    with record_spans() as store:
        scope = (
            starpo_trace.trajectory() if kind == "trajectory" else starpo_trace.step("tool", "t")
        )
        threads = [threading.Thread(target=work, args=(scope,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(play(scope))
    spans = spans_of(store, kind)
    assert len(spans) == 11
    assert sum(span.parent is not None for span in spans) == 4
    assert all(span.end_time is not None for span in spans)


def test_one_scope_closed_in_another_context_ends_the_latest():
    """Where nothing says which entry is meant, none is lost."""
    with record_spans() as store:
        scope = starpo_trace.trajectory()
        generators = [hold_run("a", scope), hold_run("b", scope)]
        for generator in generators:
            contextvars.copy_context().run(next, generator)
        for generator in generators:
            contextvars.copy_context().run(generator.close)
    assert len(store.select("trajectory")) == 2


def test_objects_that_are_called_are_decorated_for_what_they_do(caplog, monkeypatch):
    """An async `__call__` is awaited inside its run; work left for later is warned of."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())

    class Agent:
        async def __call__(self):
            return use_tool() is not None

    class Generator:
        def __call__(self):
            yield use_tool()

    def defer():
        return Agent()()

    with record_spans() as store:
        assert asyncio.run(starpo_trace.trajectory("object")(Agent())()) is True
        assert caplog.records == []
        assert asyncio.run(starpo_trace.trajectory("deferred")(defer)()) is False
    assert [semconv.TRAJECTORY_ID in s.attributes for s in spans_of(store, "step")] == [True, False]
    [record] = caplog.records
    assert "defer(), decorated with trajectory(), returned a coroutine" in record.getMessage()
    with pytest.raises(TypeError, match=r"the generator .*Generator\(\)"):
        starpo_trace.trajectory()(Generator())


def test_a_decorator_without_parentheses():
    """The function's name is the agent's, sync and async; a generator is refused."""

    @starpo_trace.trajectory
    def play(x):
        return x + 1, starpo_trace.current_trajectory() is not None

    @starpo_trace.trajectory
    async def play_async(x):
        await asyncio.sleep(0)
        return x + 2

    with record_spans() as store:
        assert play(1) == (2, True)
        assert asyncio.run(play_async(1)) == 3
    names = [root[semconv.AGENT_NAME] for root in store.select("trajectory")]
    assert names == ["play", "play_async"]
    assert play.__name__ == "play"
    with pytest.raises(TypeError, match="generator"):

        @starpo_trace.trajectory
        def steps():
            yield 1


@pytest.mark.parametrize(
    ("code", "end"), [(None, "terminated"), (0, "terminated"), (1, "abandoned"), ("x", "abandoned")]
)
def test_a_program_that_exits_well_terminates_its_run(code, end):
    """sys.exit(0) is an agent's own end, another code is not."""
    with record_spans() as store, pytest.raises(SystemExit), starpo_trace.trajectory():
        sys.exit(code)
    [root] = store.spans
    assert root.attributes[semconv.TRAJECTORY_END] == end
    assert (root.status.status_code is StatusCode.ERROR) == (end == "abandoned")


def test_uninstrument_ends_the_runs_in_progress():
    """Their roots are recorded as abandoned; the block then ends quietly."""
    store = MemoryStore()
    starpo_trace.instrument(tracer_provider=store.provider)
    with starpo_trace.trajectory() as run:
        use_tool()
        starpo_trace.uninstrument()
        assert starpo_trace.current_trajectory() is None
    assert run.is_finished
    [root] = store.select("trajectory")
    assert root[semconv.TRAJECTORY_END] == "abandoned"
    assert root[semconv.TRAJECTORY_END_REASON] == "uninstrumented"
