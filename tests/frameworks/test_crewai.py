"""CrewAI: what its model's server saw is what was recorded."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from matrix import Framework

for _name, _value in (
    ("CREWAI_TRACING_ENABLED", "false"),
    ("CREWAI_TESTING", "true"),  # asks at its first run whether traces may be shown
    ("CREWAI_DISABLE_TELEMETRY", "true"),  # tries for a minute where there is no network
    ("CREWAI_DISABLE_VERSION_CHECK", "true"),
):
    os.environ.setdefault(_name, _value)
crewai = pytest.importorskip("crewai", reason="crewai is not installed")

from crewai import LLM, Agent, Crew, Process, Task  # noqa: E402
from crewai.flow.flow import Flow, listen, start  # noqa: E402
from crewai.tools import tool  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from scenario import (  # noqa: E402
    ANSWER,
    LATE,
    QUESTION,
    RAN,
    TWO_TURNS,
    USAGE,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_trainable,
    check_wire,
    draw,
    list_tools,
    record,
    stock,
)

import starpo_trace  # noqa: E402
from starpo_trace import semconv  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

IS_NEW = "crewai.agents.agent_executor" in sys.modules
"""Whether it gives a model its tools as tools; before, they are text of the prompt."""
needs_new = pytest.mark.skipif(not IS_NEW, reason="CrewAI of a year ago has no such thing")

FRAMEWORK = Framework(
    name="CrewAI",
    packages=("crewai",),
    page="crewai",
    exempt={} if IS_NEW else {"parallel": "its text protocol has one call a turn"},
)

FINAL = f"Thought: I know.\nFinal Answer: {ANSWER}"
TEXT_TURNS = (
    Reply(
        content='Thought: look.\nAction: stock\nAction Input: {"sku": "A7"}',
        reasoning_content="Look it up.",
        usage=USAGE,
    ),
    Reply(content=FINAL, usage=USAGE),
)
"""A tool call in CrewAI's text protocol, then the answer."""
ONE_TURN = (Reply(content=FINAL, usage=USAGE),)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """What CrewAI keeps of runs is kept elsewhere."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.fixture(params=["native", "text"])
def protocol(request, monkeypatch):
    """How a model is told of tools and calls them."""
    if request.param == "native" and not IS_NEW:
        pytest.skip("CrewAI of a year ago has no native tool calls")
    if request.param == "text":
        use_text(monkeypatch)
    return request.param


def use_text(monkeypatch):
    monkeypatch.setattr(type(make_llm("")), "supports_function_calling", lambda _llm: False)


def make_llm(base_url):
    return LLM(model="gpt-4o-mini", base_url=base_url, api_key="none", max_retries=0)


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return Agent(
        role=name,
        goal="Answer.",
        backstory="Brief.",
        llm=make_llm(base_url),
        tools=[tool(each.__name__)(each) for each in tools],
        max_retry_limit=0,
        **options,
    )


def make_task(agent, **options):
    return Task(description=QUESTION, expected_output="A number.", agent=agent, **options)


def make_crew(base_url, *, agents=None, name="store", task=None, **options):
    agents = agents or [make_agent(base_url)]
    tasks = [make_task(agent, **(task or {})) for agent in agents]
    return Crew(agents=agents, tasks=tasks, name=name, **options)


def run_crew(url):
    return make_crew(url).kickoff().raw


def run_crew_in_a_thread(url):
    return asyncio.run(make_crew(url).kickoff_async()).raw


def run_crew_async(url):
    return asyncio.run(make_crew(url).akickoff()).raw


def run_agent(url):
    return make_agent(url).kickoff(QUESTION).raw


def run_agent_async(url):
    return asyncio.run(make_agent(url).kickoff_async(QUESTION)).raw


RUNS = [
    run_crew,
    run_agent,
    pytest.param(run_crew_in_a_thread, marks=pytest.mark.shows("async")),
    pytest.param(run_agent_async, marks=pytest.mark.shows("async")),
    pytest.param(run_crew_async, marks=[needs_new, pytest.mark.shows("async")]),
]


def draw_run(run, *steps):
    """Spans of a crew of one agent, or of an agent alone."""
    if "crew" not in run.__name__:
        return ["invoke_agent shop", *("  " + step for step in steps)]
    return ["invoke_agent store", "  invoke_agent shop", *("    " + step for step in steps)]


@needs_new
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", RUNS)
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(url)))
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
    assert list_tools(recorded) == RAN
    tools = ["execute_tool stock #call_a", "execute_tool stock #call_b"]
    chat = "chat gpt-4o-mini"
    assert sorted(draw(recorded)) == sorted(draw_run(run, chat, *tools, chat))
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("llm", "tools", "reasoning")
@pytest.mark.parametrize("run", RUNS)
def test_two_turns_of_text(tmp_path, run, monkeypatch):
    """A model without tools is told of them in its prompt, and calls one in its answer."""
    use_text(monkeypatch)
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(url)), TEXT_TURNS)
    assert answers == [ANSWER]
    check_wire(recorded, TEXT_TURNS)
    check_trainable(recorded, TEXT_TURNS)
    assert list_tools(recorded) == [("stock", None, '{"sku": "A7"}', "A7: 3")]
    chat = "chat gpt-4o-mini"
    assert draw(recorded) == draw_run(run, chat, "execute_tool stock", chat)
    assert recorded.trajectories[0]["end"] == "terminated"


def read_chunks(url):
    output = make_crew(url, stream=True).kickoff()
    assert len(list(output)) > 1
    return output.result.raw


def read_chunks_async(kickoff):
    def run(url):
        async def read():
            output = await getattr(make_crew(url, stream=True), kickoff)()
            assert len([chunk async for chunk in output]) > 1
            return output.result.raw

        return asyncio.run(read())

    return run


@pytest.mark.shows("streaming")
@pytest.mark.parametrize(
    "run",
    [
        read_chunks,
        read_chunks_async("kickoff_async"),
        pytest.param(read_chunks_async("akickoff"), marks=needs_new),
    ],
    ids=["kickoff", "kickoff_async", "akickoff"],
)
def test_streamed(tmp_path, run, protocol):
    """The same from a stream."""
    script = TWO_TURNS if protocol == "native" else TEXT_TURNS
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(url)), script)
    assert answers == [ANSWER]
    assert [request["stream"] for request in recorded.requests] == [True, True]
    check_wire(recorded, script)
    assert len(list_tools(recorded)) == (2 if protocol == "native" else 1)
    assert draw(recorded)[:2] == ["invoke_agent store", "  invoke_agent shop"]
    assert recorded.trajectories[0]["end"] == "terminated"


DELEGATE = "delegate_work_to_coworker" if IS_NEW else "Delegate work to coworker"
WORK = json.dumps({"task": QUESTION, "context": "None.", "coworker": "shop"})


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("kickoff", ["kickoff", pytest.param("akickoff", marks=needs_new)])
def test_a_manager_that_delegates(tmp_path, monkeypatch, kickoff):
    """A coworker runs inside of the tool that the manager calls."""
    use_text(monkeypatch)
    delegation = f"Thought: ask.\nAction: {DELEGATE}\nAction Input: {WORK}"
    script = [Reply(content=delegation, usage=USAGE), *TEXT_TURNS, *ONE_TURN]

    def program(url):
        crew = make_crew(url, process=Process.hierarchical, manager_llm=make_llm(url))
        result = getattr(crew, kickoff)()
        assert (asyncio.run(result) if kickoff == "akickoff" else result).raw == ANSWER

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent store",
        "  invoke_agent Crew Manager",
        "    chat gpt-4o-mini",
        f"    execute_tool {DELEGATE}",
        "      invoke_agent shop",
        "        chat gpt-4o-mini",
        "        execute_tool stock",
        "        chat gpt-4o-mini",
        "    chat gpt-4o-mini",
    ]


@needs_new
@pytest.mark.pictured
@pytest.mark.shows("sub-agents")
def test_a_manager_that_delegates_natively(tmp_path):
    """The same with native tool calls: the coworker calls two tools at once."""
    call = ToolCall(id="c1", name=DELEGATE, arguments=WORK)
    script = [Reply(tool_calls=[call], usage=USAGE), *TWO_TURNS, *TWO_TURNS[1:]]
    recorded = record(
        tmp_path,
        lambda url: make_crew(
            url, process=Process.hierarchical, manager_llm=make_llm(url)
        ).kickoff(),
        script,
    )
    check_wire(recorded, script)
    check_trainable(recorded, script)
    assert list_tools(recorded) == [(DELEGATE, "c1", WORK, ANSWER), *RAN]
    drawn = draw(recorded)
    tools = ["execute_tool stock #call_a", "execute_tool stock #call_b"]
    assert drawn[:6] + sorted(drawn[6:8]) + drawn[8:] == [
        "invoke_agent store",
        "  invoke_agent Crew Manager",
        "    chat gpt-4o-mini",
        f"    execute_tool {DELEGATE} #c1",
        "      invoke_agent shop",
        "        chat gpt-4o-mini",
        *("        " + each for each in tools),
        "        chat gpt-4o-mini",
        "    chat gpt-4o-mini",
    ]


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("is_async", [False, True], ids=["in order", "in a thread"])
def test_two_tasks(tmp_path, is_async):
    """Each agent of a crew is a part of its run."""
    script = ONE_TURN * 2

    def program(url):
        agents = [make_agent(url, tools=(), name=name) for name in ("first", "second")]
        crew = make_crew(url, agents=agents)
        crew.tasks[0].async_execution = is_async
        crew.kickoff()

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent store",
        "  invoke_agent first",
        "    chat gpt-4o-mini",
        "  invoke_agent second",
        "    chat gpt-4o-mini",
    ]


class Counts(BaseModel):
    question: str = ""
    answer: str = ""
    checked: bool = False


def make_flow(url, *, initial=Counts, ask=run_agent, name="counting"):
    """A flow with an agent or a crew in its first method; its state changes in both."""

    class Counting(Flow[initial]):
        @start()
        def ask_shop(self):
            answer = ask(url)
            write(self.state, "answer", answer)
            return answer

        @listen(ask_shop)
        async def check(self, answer):
            write(self.state, "checked", True)
            return answer

    flow = Counting()
    flow.name = name
    return flow


def write(state, key, value):
    if isinstance(state, dict):
        state[key] = value
    else:
        setattr(state, key, value)


def read_states(recorded):
    """What is in each state that was recorded, without the id."""
    values = [json.loads(state["value"]) for state in recorded.states]
    return [{key: value[key] for key in sorted(value) if key != "id"} for value in values]


@pytest.mark.shows("state", "sub-agents")
@pytest.mark.parametrize("kickoff", ["kickoff", "kickoff_async"])
@pytest.mark.parametrize("initial", [Counts, dict])
@pytest.mark.parametrize("ask", [run_agent, run_crew])
def test_a_flow(tmp_path, monkeypatch, kickoff, initial, ask):
    """Its state is recorded before and after its methods, where it changed."""
    use_text(monkeypatch)

    def program(url):
        flow = make_flow(url, initial=initial, ask=ask)
        result = getattr(flow, kickoff)(inputs={"question": QUESTION})
        assert (asyncio.run(result) if kickoff == "kickoff_async" else result) == ANSWER

    recorded = record(tmp_path, program, TEXT_TURNS)
    check_wire(recorded, TEXT_TURNS)
    inside = draw_run(ask, "chat gpt-4o-mini", "execute_tool stock", "chat gpt-4o-mini")
    assert draw(recorded) == [
        "invoke_agent counting",
        "  state counting",
        *("  " + each for each in inside),
        "  state counting",
        "  state counting",
    ]
    first = {"answer": "", "checked": False} if initial is Counts else {}
    states = [
        {**first, "question": QUESTION},
        {**first, "question": QUESTION, "answer": ANSWER},
        {**first, "question": QUESTION, "answer": ANSWER, "checked": True},
    ]
    assert read_states(recorded) == states
    assert recorded.trajectories[0]["end"] == "terminated"
