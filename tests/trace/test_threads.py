"""Threads and tasks of a run -> steps of that run."""

import asyncio
import concurrent.futures
import contextvars
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.lineage import list_alive
from starpo_trace.testing import Reply, ScriptedServer, record_spans


def use_tool(name="t"):
    with starpo_trace.step("tool", name):
        return starpo_trace.current_trajectory()


def steps_by_run(store):
    found = {}
    for step in store.select("step"):
        found.setdefault(step.get(semconv.TRAJECTORY_ID), []).append(step[semconv.STEP])
    return {run: sorted(steps) for run, steps in found.items()}


def test_work_given_to_a_pool_belongs_to_the_run_that_gave_it():
    """Two runs share one pool of one thread; nothing of one is taken for the other's."""
    with record_spans() as store, ThreadPoolExecutor(1) as pool:
        with starpo_trace.trajectory() as first:
            assert [each.result() for each in [pool.submit(use_tool) for _ in range(3)]] == [
                first
            ] * 3
        assert pool.submit(starpo_trace.current_trajectory).result() is None
        with starpo_trace.trajectory() as second:
            assert list(pool.map(use_tool, "ab")) == [second, second]
    assert steps_by_run(store) == {first.id: [0, 1, 2], second.id: [0, 1]}
    roots = {span.context.span_id for span in store.spans if span.parent is None}
    steps = [span for span in store.spans if span.attributes[semconv.RECORD] == "step"]
    assert {span.parent.span_id for span in steps} == roots


def test_a_copied_context_says_the_same():
    """Programs that already copy their context are not disturbed."""
    with record_spans() as store, ThreadPoolExecutor(2) as pool, starpo_trace.trajectory() as run:
        copied = contextvars.copy_context()
        assert pool.submit(copied.run, use_tool).result() is run

        async def work():
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(asyncio.to_thread(use_tool))
            return await asyncio.gather(task, loop.run_in_executor(None, use_tool))

        assert asyncio.run(work()) == [run, run]
    assert steps_by_run(store) == {run.id: [0, 1, 2]}


def test_a_context_of_another_run_wins():
    """Work that brings a context of its own keeps it."""
    with record_spans(), ThreadPoolExecutor(1) as pool, starpo_trace.trajectory() as first:
        copied = contextvars.copy_context()
        with starpo_trace.trajectory() as second:
            assert pool.submit(copied.run, starpo_trace.current_trajectory).result() is first
            assert pool.submit(starpo_trace.current_trajectory).result() is second


class Worker(threading.Thread):
    """A thread with a `run` of its own."""

    def __init__(self):
        super().__init__()
        self.found = None

    def run(self):
        self.found = use_tool(), "run" in vars(self)


def test_a_thread_belongs_to_the_run_that_started_it():
    """Whether it has a target or a method; the object is as it was when its code runs."""
    found = []
    with record_spans() as store, starpo_trace.trajectory() as run:
        thread = threading.Thread(target=lambda: found.append(use_tool()))
        worker = Worker()
        for each in (thread, worker):
            each.start()
        for each in (thread, worker):
            each.join()
    assert found == [run]
    assert worker.found == (run, False)
    assert steps_by_run(store) == {run.id: [0, 1]}


def test_a_thread_leaves_its_run_when_that_ends():
    """What a worker that outlives the run does then is a trace of its own, again and again."""
    ended, found = threading.Event(), []

    def work():
        found.append(starpo_trace.current_trajectory())
        ended.wait(10)
        found.append(use_tool())
        found.append(use_tool())

    with record_spans() as store:
        with starpo_trace.trajectory() as run:
            thread = threading.Thread(target=work)
            thread.start()
        ended.set()
        thread.join()
    assert found == [run, None, None]
    late = [span for span in store.spans if span.attributes[semconv.RECORD] == "step"]
    assert [span.parent for span in late] == [None, None]
    assert [semconv.TRAJECTORY_ID in span.attributes for span in late] == [False, False]


def test_a_task_begun_inside_a_call_makes_calls_of_its_own():
    """A hook of the HTTP client starts work that lives on after the call has ended."""
    tasks = []

    async def ask(client):
        return await client.chat.completions.create(model="m", messages=[])

    async def play(url):
        async def later(client):
            await asyncio.sleep(0.05)
            await ask(client)

        async def start_task(request):
            if not tasks:
                tasks.append(asyncio.create_task(later(client)))

        http = httpx.AsyncClient(event_hooks={"request": [start_task]})
        async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http) as client:
            with starpo_trace.trajectory():
                await ask(client)
                await tasks[0]

    with ScriptedServer([Reply(content="x")]) as server, record_spans() as store:
        asyncio.run(play(server.base_url))
    assert [call[semconv.STEP] for call in store.select("llm")] == [0, 1]


def test_outside_of_a_run_nothing_is_touched():
    """The very function reaches the pool, and `uninstrument` leaves no trace."""
    before = vars(concurrent.futures.thread.ThreadPoolExecutor)["submit"], threading.Thread.start
    seen = []

    class Pool(ThreadPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            seen.append(fn)
            return super().submit(fn, *args, **kwargs)

    with record_spans(), Pool(1) as pool:
        assert pool.submit(len, "ab").result() == 2
    assert seen == [len]
    after = vars(concurrent.futures.thread.ThreadPoolExecutor)["submit"], threading.Thread.start
    assert after == before


def test_errors_of_threads_pass_unchanged():
    """The very exception object reaches the future."""
    error = ValueError("mine")

    def fail():
        raise error

    with record_spans(), starpo_trace.trajectory(), ThreadPoolExecutor(1) as pool:
        future = pool.submit(fail)
        with pytest.raises(ValueError, match="mine") as caught:
            future.result()
    assert caught.value is error


def test_what_is_alive_can_be_listed_while_threads_add_to_it():
    """Nothing is raised, and what somebody holds is among it."""

    class Thing:
        pass

    objects, held, stop = weakref.WeakValueDictionary(), Thing(), threading.Event()
    objects[id(held)] = held

    def add():
        while not stop.is_set():
            things = [Thing() for _ in range(50)]
            objects.update((id(thing), thing) for thing in things)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert all(held in list_alive(objects) for _ in range(2000))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
