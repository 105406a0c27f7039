"""CrewAI: what its model's server saw is what was recorded."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

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
from starpo_trace.convert.dataset import build_dataset, scan_table  # noqa: E402
from starpo_trace.testing import Reply, ScriptedServer, ToolCall  # noqa: E402

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


def run_agent_in_a_loop(url):
    """Where a loop runs, an agent may give a coroutine for its result."""

    async def run():
        result = make_agent(url).kickoff(QUESTION)
        return (await result if inspect.isawaitable(result) else result).raw

    return asyncio.run(run())


RUNS = [
    run_crew,
    run_agent,
    pytest.param(run_agent_in_a_loop, marks=pytest.mark.shows("async")),
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


def read_flow(url):
    flow = make_flow(url)
    flow.stream = True
    output = flow.kickoff(inputs={"question": QUESTION})
    assert len(list(output)) > 1
    return output.result


def read_flow_async(url):
    async def read():
        flow = make_flow(url)
        flow.stream = True
        output = await flow.kickoff_async(inputs={"question": QUESTION})
        assert len([chunk async for chunk in output]) > 1
        return output.result

    return asyncio.run(read())


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("run", [read_flow, read_flow_async])
def test_a_flow_that_streams(tmp_path, monkeypatch, run):
    """The run is the flow, whose stream has what its agents stream."""
    use_text(monkeypatch)
    plain = make_llm

    def stream(url):
        llm = plain(url)
        llm.stream = True
        return llm

    monkeypatch.setitem(globals(), "make_llm", stream)
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(url)), TEXT_TURNS)
    assert answers == [ANSWER]
    check_wire(recorded, TEXT_TURNS)
    assert draw(recorded)[:3] == [
        "invoke_agent counting",
        "  state counting",
        "  invoke_agent shop",
    ]
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


def read_errors(recorded):
    """Type of the error and text that the model is told, of each tool that ran."""
    return [
        (span.attributes.get(semconv.ERROR_TYPE), span.attributes.get(semconv.TOOL_CALL_RESULT))
        for span in recorded.spans
        if span.attributes.get(semconv.OPERATION_NAME) == "execute_tool"
    ]


@needs_new
def test_a_tool_that_fails(tmp_path):
    """The step has the error, and what the model is told of it."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call], usage=USAGE), *ONE_TURN]
    recorded = record(
        tmp_path, lambda url: make_agent(url, tools=(broken_stock,)).kickoff(QUESTION), script
    )
    check_wire(recorded, script)
    told = recorded.requests[1]["messages"][-1]["content"]
    assert told == "Error executing tool: no shelf for A7"
    assert read_errors(recorded) == [("RuntimeError", told)]
    check_end(recorded, "terminated", "ok", "ok")


def test_a_tool_that_fails_in_text(tmp_path, monkeypatch):
    """CrewAI tries it again by itself; that is one step."""
    use_text(monkeypatch)
    call = 'Thought: look.\nAction: broken_stock\nAction Input: {"sku": "A7"}'
    script = [Reply(content=call, usage=USAGE), *ONE_TURN]
    recorded = record(
        tmp_path, lambda url: make_agent(url, tools=(broken_stock,)).kickoff(QUESTION), script
    )
    check_wire(recorded, script)
    [(error, told)] = read_errors(recorded)
    assert error == "RuntimeError"
    assert told.strip().startswith("I encountered an error while trying to use the tool.")
    assert told in "".join(message["content"] for message in recorded.requests[1]["messages"])


def test_a_tool_that_fails_once(tmp_path, monkeypatch):
    """What its second attempt gave is no error."""
    use_text(monkeypatch)
    failures = [RuntimeError("closed")] * 2  # with the arguments it knows, then with all

    def flaky_stock(sku: str) -> str:
        """How many of an article are there."""
        if failures:
            raise failures.pop()
        return stock(sku)

    call = 'Thought: look.\nAction: flaky_stock\nAction Input: {"sku": "A7"}'
    script = [Reply(content=call, usage=USAGE), *ONE_TURN]
    recorded = record(
        tmp_path, lambda url: make_agent(url, tools=(flaky_stock,)).kickoff(QUESTION), script
    )
    assert failures == []
    assert read_errors(recorded) == [(None, "A7: 3")]


def test_a_call_of_no_tool(tmp_path, protocol):
    """Nothing ran, so there is no step; the model is told so."""
    call = ToolCall(id="c1", name="prices", arguments="{}")
    text = "Thought: look.\nAction: prices\nAction Input: {}"
    reply = Reply(tool_calls=[call]) if protocol == "native" else Reply(content=text)
    recorded = record(tmp_path, run_crew, [reply, *ONE_TURN])
    assert list_tools(recorded) == []
    check_end(recorded, "terminated", "ok", "ok")


@needs_new
def test_a_call_that_is_answered_from_a_cache(tmp_path):
    """The tool ran once."""
    calls = [
        Reply(tool_calls=[ToolCall(id=each, name="stock", arguments='{"sku": "A7"}')])
        for each in ("c1", "c2")
    ]
    script = [*calls, *ONE_TURN]
    recorded = record(tmp_path, lambda url: make_crew(url, cache=True).kickoff(), script)
    told = [each["content"] for each in recorded.requests[2]["messages"] if each["role"] == "tool"]
    assert told == ["A7: 3"] * 2
    assert list_tools(recorded) == [("stock", "c1", '{"sku": "A7"}', "A7: 3")]


@needs_new
def test_a_result_that_a_hook_replaces(tmp_path, monkeypatch):
    """The step has what the model is told."""
    from crewai.hooks import register_after_tool_call_hook, unregister_after_tool_call_hook

    def replace(_context):
        return "none"

    register_after_tool_call_hook(replace)
    try:
        recorded = record(tmp_path, run_agent)
    finally:
        unregister_after_tool_call_hook(replace)
    assert [each[3] for each in list_tools(recorded)] == ["none", "none"]
    check_wire(recorded)


@needs_new
def test_a_tool_that_runs_an_agent(tmp_path):
    """The agent is a part of the step, which has the id of its call."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask", arguments='{"text": "A7?"}')], usage=USAGE),
        *ONE_TURN,
        *ONE_TURN,
    ]

    def program(url):
        def ask(text: str) -> str:
            """Asks the shop."""
            return make_agent(url, tools=(), name="inner").kickoff(text).raw

        make_agent(url, tools=(ask,)).kickoff(QUESTION)

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat gpt-4o-mini",
        "  execute_tool ask #c1",
        "    invoke_agent inner",
        "      chat gpt-4o-mini",
        "  chat gpt-4o-mini",
    ]


@needs_new
def test_an_agent_that_plans(tmp_path):
    """The tools of a plan's steps are steps of the run."""
    steps = [{"step_number": 1, "description": "Look.", "tool_to_use": "stock", "depends_on": []}]
    plan = {"plan": "Look it up.", "steps": steps, "ready": True}
    planned = ToolCall(id="p1", name="create_reasoning_plan", arguments=json.dumps(plan))
    seen = {
        "step_completed_successfully": True,
        "key_information_learned": "three",
        "remaining_plan_still_valid": True,
        "needs_full_replan": False,
    }

    def answer(body):
        text = json.dumps(body["messages"])
        names = [each["function"]["name"] for each in body.get("tools", [])]
        if "create_reasoning_plan" in names:
            return Reply(tool_calls=[planned])
        if "response_format" in body:
            return Reply(content=json.dumps(seen))
        if names == ["stock"] and '"role": "tool"' not in text:
            return TWO_TURNS[0]
        return TWO_TURNS[1]

    recorded = record(
        tmp_path,
        lambda url: make_agent(url, planning_config=crewai.PlanningConfig(max_attempts=1)).kickoff(
            QUESTION
        ),
        answer,
    )
    assert list_tools(recorded) == RAN
    assert len(recorded.turns) == len(recorded.requests)
    assert len({span.trace_id for span in recorded.spans}) == 1
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_fails(tmp_path, run):
    """The run ends as an error, with the exception that left it."""
    recorded = record(tmp_path, run, [Reply(status=500)], raises=Exception)
    check_end(recorded, "error", "error")


@pytest.mark.shows("error")
@pytest.mark.parametrize(
    "run",
    [read_chunks, pytest.param(read_chunks_async("akickoff"), marks=needs_new)],
    ids=["kickoff", "akickoff"],
)
def test_a_stream_that_fails(tmp_path, run):
    """The same from a stream."""
    recorded = record(tmp_path, run, [Reply(status=500)], raises=Exception)
    check_end(recorded, "error", "error")


@pytest.mark.shows("error")
def test_a_flow_that_fails(tmp_path):
    """Its state is recorded nevertheless."""

    def ask(_url):
        raise RuntimeError("closed")

    recorded = record(
        tmp_path,
        lambda url: make_flow(url, ask=ask).kickoff(inputs={"question": QUESTION}),
        [],
        raises=RuntimeError,
    )
    assert [row["end"] for row in recorded.trajectories] == ["error"]
    assert [state["question"] for state in read_states(recorded)] == [QUESTION]


@needs_new
@pytest.mark.shows("cancel")
@pytest.mark.parametrize(
    "make",
    [
        lambda url: make_crew(url).akickoff(),
        lambda url: make_agent(url).kickoff_async(QUESTION),
    ],
    ids=["crew", "agent"],
)
def test_cancelled(tmp_path, make):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(make(url))),
        LATE,
        raises=asyncio.CancelledError,
    )
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]
    assert len(recorded.turns) == 1


@pytest.mark.shows("cancel")
@pytest.mark.parametrize(
    "make",
    [
        lambda url: make_crew(url).kickoff_async(),
        pytest.param(
            lambda url: make_agent(url).kickoff_async(QUESTION),
            marks=pytest.mark.skipif(IS_NEW, reason="it runs in no thread any more"),
        ),
    ],
    ids=["crew", "agent"],
)
def test_cancelled_in_a_thread(tmp_path, monkeypatch, make):
    """The thread goes on, and what it does is a part of the run."""
    use_text(monkeypatch)
    script = [Reply(content=TEXT_TURNS[0].content, usage=USAGE, delay_s=1.5), TEXT_TURNS[1]]
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(make(url))),
        script,
        raises=asyncio.CancelledError,
    )
    check_wire(recorded, script)
    check_end(recorded, "abandoned", "ok", "ok")


@pytest.mark.shows("cancel")
def test_a_cancelled_flow(tmp_path):
    """A flow is cancelled where it waits."""

    async def ask_flow(url):
        flow = make_flow(url, ask=lambda _url: "")

        class Slow(type(flow)):
            @start()
            async def wait(self):
                await asyncio.sleep(30)

        await cancel_soon(Slow().kickoff_async())

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(ask_flow(url)),
        [],
        raises=asyncio.CancelledError,
    )
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]


@needs_new
@pytest.mark.shows("cancel", "streaming")
def test_a_closed_stream(tmp_path):
    """Closing a stream cancels its run."""

    async def read_one(url):
        output = await make_crew(url, stream=True).akickoff()
        async for _ in output:
            break
        await output.aclose()

    slow = Reply(content="One two three four.", num_stream_chunks=4, chunk_pause_s=0.5)
    recorded = record(tmp_path, lambda url: asyncio.run(read_one(url)), [slow])
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]
    assert len(recorded.turns) == 1


def run_in_threads(url):
    with ThreadPoolExecutor(3) as pool:
        crews = [make_crew(url, name=f"c{index}") for index in range(3)]
        assert [each.raw for each in pool.map(Crew.kickoff, crews)] == [ANSWER] * 3


def run_for_each(url):
    results = make_crew(url).kickoff_for_each([{"n": "1"}, {"n": "2"}, {"n": "3"}])
    assert [each.raw for each in results] == [ANSWER] * 3


def run_for_each_async(url):
    crew = make_crew(url)
    kickoff = crew.akickoff_for_each if IS_NEW else crew.kickoff_for_each_async
    results = asyncio.run(kickoff([{"n": "1"}, {"n": "2"}, {"n": "3"}]))
    assert [each.raw for each in results] == [ANSWER] * 3


def answer_text_by_history(body):
    return TEXT_TURNS["Observation: A7" in json.dumps(body["messages"])]


@pytest.mark.parametrize("run", [run_in_threads, run_for_each, run_for_each_async])
def test_several_runs_at_once(tmp_path, run, protocol):
    """Each is a trajectory of its own."""
    script = answer_by_history if protocol == "native" else answer_text_by_history
    recorded = record(tmp_path, run, script)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    assert {row["end"] for row in recorded.trajectories} == {"terminated"}


def test_a_run_that_the_program_names(tmp_path, monkeypatch):
    """A crew is a part of it, and a limit of the crew's no end of it."""
    use_text(monkeypatch)

    def program(url):
        with starpo_trace.trajectory("shopping"):
            make_crew(url, agents=[make_agent(url, max_iter=1)]).kickoff()
            run_agent(url)

    script = [*TEXT_TURNS, *ONE_TURN]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shopping",
        "  invoke_agent store",
        "    invoke_agent shop",
        "      chat gpt-4o-mini",
        "      execute_tool stock",
        "      chat gpt-4o-mini",
        "  invoke_agent shop",
        "    chat gpt-4o-mini",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.parametrize("run", [run_crew, run_agent])
def test_a_limit(tmp_path, monkeypatch, run):
    """An agent that its limit made to answer was truncated, and so is the crew that ends with it."""
    use_text(monkeypatch)
    limited = make_agent
    monkeypatch.setitem(globals(), "make_agent", lambda url: limited(url, max_iter=1))
    recorded = record(tmp_path, run, [*TEXT_TURNS, *ONE_TURN])  # an older `LiteAgent` asks twice
    assert [row["end"] for row in recorded.trajectories] == ["truncated"]
    [root] = [span for span in recorded.spans if span.parent_id is None]
    assert root.attributes[semconv.TRAJECTORY_END_REASON] == "max_iter"


def test_a_limit_of_another_agent(tmp_path, monkeypatch):
    """A crew whose last agent came to its own end was not truncated."""
    use_text(monkeypatch)

    def program(url):
        agents = [make_agent(url, max_iter=1, name="first"), make_agent(url, name="second")]
        make_crew(url, agents=agents).kickoff()

    script = [*TEXT_TURNS, *ONE_TURN]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.parametrize("of", ["task", "agent"])
def test_a_guardrail(tmp_path, of):
    """What a guardrail refuses is tried again in the same run."""
    verdicts = [(False, "Say it."), (True, ANSWER)]

    def guard(_output):
        return verdicts.pop(0)

    def program(url):
        if of == "agent":
            return make_agent(url, tools=(), guardrail=guard).kickoff(QUESTION).raw
        agent = make_agent(url, tools=())
        return make_crew(url, agents=[agent], task={"guardrail": guard}).kickoff().raw

    answers = []
    script = ONE_TURN * 2
    recorded = record(tmp_path, lambda url: answers.append(program(url)), script)
    assert (answers, verdicts) == ([ANSWER], [])
    check_wire(recorded, script)
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.parametrize("kickoff", ["kickoff", pytest.param("akickoff", marks=needs_new)])
def test_knowledge(tmp_path, monkeypatch, kickoff):
    """What is looked up for a prompt is a retrieval."""
    from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource
    from crewai.knowledge.storage.knowledge_storage import KnowledgeStorage

    found = [{"id": "1", "content": "A7: 3", "metadata": {}, "score": 0.9}]

    async def find(*_args, **_options):
        return found

    monkeypatch.setattr(KnowledgeStorage, "save", lambda *_args, **_options: None)
    monkeypatch.setattr(KnowledgeStorage, "search", lambda *_args, **_options: found)
    monkeypatch.setattr(KnowledgeStorage, "asearch", find, raising=False)

    def program(url):
        source = StringKnowledgeSource(content="A7: 3")
        agent = make_agent(url, tools=(), knowledge_sources=[source])
        result = getattr(make_crew(url, agents=[agent]), kickoff)()
        assert (asyncio.run(result) if kickoff == "akickoff" else result).raw == ANSWER

    script = [Reply(content="stock of A7", usage=USAGE), *ONE_TURN]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent store",
        "  invoke_agent shop",
        "    chat gpt-4o-mini",
        "    retrieval knowledge",
        "    chat gpt-4o-mini",
    ]
    attributes = recorded.spans[3].attributes
    assert attributes[semconv.TOOL_CALL_ARGUMENTS] == "stock of A7"
    assert json.loads(attributes[semconv.TOOL_CALL_RESULT]) == found


@needs_new
def test_memory(tmp_path):
    """What is remembered for a prompt is a retrieval too."""

    def answer(body):
        if "response_format" in body:
            return Reply(content='{"memories": []}')
        return TWO_TURNS[1]

    def program(url):
        memory = crewai.Memory(
            llm=make_llm(url),
            storage=str(tmp_path / "memory"),
            embedder=lambda texts: [[1.0, 0.0, 0.0] for _ in texts],
        )
        memory.remember("A7: 3", scope="/", categories=[], importance=0.5)
        agent = make_agent(url, tools=())
        assert make_crew(url, agents=[agent], memory=memory).kickoff().raw == ANSWER

    recorded = record(tmp_path, program, answer)
    [found] = [span for span in recorded.spans if span.name == "retrieval memory"]
    assert QUESTION in found.attributes[semconv.TOOL_CALL_ARGUMENTS]
    assert "A7: 3" in found.attributes[semconv.TOOL_CALL_RESULT]
    assert len({turn["trajectory_id"] for turn in recorded.turns}) == 1
    assert len(recorded.turns) == len(recorded.requests)


@needs_new
def test_a_flow_that_waits_for_a_person(tmp_path):
    """It is truncated there; what resumes it is another run of the same conversation."""
    from crewai.flow.async_feedback import HumanFeedbackPending
    from crewai.flow.human_feedback import human_feedback
    from crewai.flow.persistence import SQLiteFlowPersistence

    class Person:
        def request_feedback(self, context, _flow):
            raise HumanFeedbackPending(context=context)

    persistence = SQLiteFlowPersistence(str(tmp_path / "flows.db"))

    class Asking(Flow[Counts]):
        @start()
        @human_feedback(message="Right?", provider=Person())
        def ask_shop(self):
            self.state.answer = ANSWER
            return ANSWER

        @listen(ask_shop)
        def check(self, _result):
            self.state.checked = True

    def program(_url):
        paused = Asking(persistence=persistence)
        assert isinstance(paused.kickoff(), HumanFeedbackPending)
        Asking.from_pending(paused.flow_id, persistence).resume("Yes.")

    recorded = record(tmp_path, program, [])
    first, second = sorted(recorded.trajectories, key=lambda row: row["started_ns"])
    assert (first["end"], second["end"]) == ("truncated", "terminated")
    assert first["conversation_id"] == second["conversation_id"]
    states = [each for each in recorded.states if each["trajectory_id"] == second["trajectory_id"]]
    assert json.loads(states[-1]["value"])["checked"] is True


def test_a_stored_flow(tmp_path):
    """The id of its state is the conversation."""
    recorded = record(
        tmp_path,
        lambda url: make_flow(url, ask=lambda _url: "").kickoff(inputs={"id": "t1"}),
        [],
    )
    assert [row["conversation_id"] for row in recorded.trajectories] == ["t1"]


STATISTICS = """
import os
from pathlib import Path
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from starpo_trace.store.sink import SpanSink
sent = []
OTLPSpanExporter.export = lambda _self, spans: sent.extend(spans) or SpanExportResult.SUCCESS
if "OWN" in os.environ:
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SpanSink(Path(os.environ["STARPO_STORE"])))
import crewai, starpo_trace
from crewai.telemetry.telemetry import Telemetry
starpo_trace.instrument()
llm = crewai.LLM(model="gpt-4o-mini", base_url=os.environ["URL"], api_key="none", max_retries=0)
agent = crewai.Agent(role="shop", goal="Answer.", backstory="Brief.", llm=llm)
task = crewai.Task(description="How many?", expected_output="A number.", agent=agent)
crewai.Crew(agents=[agent], tasks=[task], name="store").kickoff()
starpo_trace.uninstrument()
statistics = Telemetry()
if statistics.ready:
    statistics.provider.force_flush()
print("SENT", sorted({span.name for span in sent}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_off", "has_provider"),
    [(False, False), (True, False), (False, True)],
    ids=["on", "off", "on, beside the program's"],
)
def test_statistics_of_its_makers(tmp_path, is_off, has_provider):
    """They get none of our spans, also as the global provider that they were; we need none."""
    environment = {
        **{name: value for name, value in os.environ.items() if "OTEL" not in name},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "STARPO_STORE": str(tmp_path / "traces"),
        "CREWAI_DISABLE_TELEMETRY": str(is_off).lower(),
        **({"OWN": "yes"} if has_provider else {}),
    }
    with ScriptedServer(ONE_TURN) as server:
        done = subprocess.run(
            [sys.executable, "-c", STATISTICS],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=tmp_path,
            env={**environment, "URL": server.base_url},
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    sent = done.stdout.partition("SENT ")[2]
    are_sent = not is_off and (IS_NEW or not has_provider)  # else they are in the program's
    assert ("Crew Created" in sent) == are_sent
    assert "chat" not in sent
    assert "invoke_agent" not in sent
    manifest = build_dataset([tmp_path / "traces"], tmp_path / "dataset")
    assert manifest.accounting.is_closed
    [trajectory] = scan_table(tmp_path / "dataset", "trajectories").collect().to_dicts()
    told = {key: trajectory[key] for key in ("agent_name", "num_turns", "num_steps", "end")}
    assert told == {"agent_name": "store", "num_turns": 1, "num_steps": 1, "end": "terminated"}


def test_put_back():
    """Afterwards the classes and functions are the ones that were there."""
    from crewai.knowledge.knowledge import Knowledge
    from crewai.lite_agent import LiteAgent
    from crewai.tools.base_tool import BaseTool, Tool
    from crewai.tools.structured_tool import CrewStructuredTool

    places = [
        (Crew, "kickoff"),
        (Crew, "kickoff_async"),
        (Agent, "execute_task"),
        (LiteAgent, "kickoff"),
        (LiteAgent, "kickoff_async"),
        (BaseTool, "run"),
        (CrewStructuredTool, "invoke"),
        (Knowledge, "query"),
    ]
    loops = ["crewai.lite_agent"]
    if IS_NEW:
        from crewai.agents import step_executor
        from crewai.agents.agent_executor import AgentExecutor

        flow = sys.modules["crewai.flow.runtime"].Flow
        loops.append("crewai.agents.agent_executor")
        places += [
            (Tool, "run"),
            (Crew, "akickoff"),
            (Agent, "aexecute_task"),
            (Agent, "kickoff"),
            (Agent, "kickoff_async"),
            (flow, "resume_async"),
            (AgentExecutor, "_execute_single_native_tool_call"),
            (step_executor, "execute_single_native_tool_call"),
            (step_executor, "execute_tool_and_check_finality"),
            (Knowledge, "aquery"),
            (crewai.Memory, "recall"),
        ]
    else:
        flow = Flow
        loops.append("crewai.agents.crew_agent_executor")
    places += [(flow, "kickoff_async"), (flow, "_execute_method")]
    for name in loops:
        places.append((sys.modules[name], "execute_tool_and_check_finality"))
        places.append((sys.modules[name], "handle_max_iterations_exceeded"))
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
