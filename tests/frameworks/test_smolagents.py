"""smolagents: what its model's server saw is what was recorded."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from matrix import Framework

smolagents = pytest.importorskip("smolagents", reason="smolagents is not installed")

from scenario import (  # noqa: E402
    ANSWER,
    CALLS,
    QUESTION,
    USAGE,
    check_end,
    check_put_back,
    check_trainable,
    check_wire,
    draw,
    list_states,
    list_tools,
    record,
)

from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(
    name="smolagents",
    packages=("smolagents",),
    page="smolagents",
    exempt={"async": "it has no async methods"},
)


def call(*tool_calls, content=None):
    """An answer of the model; smolagents cannot do without its usage."""
    return Reply(content=content, tool_calls=tool_calls, usage=USAGE)


FINAL = ToolCall(id="call_z", name="final_answer", arguments=f'{{"answer": "{ANSWER}"}}')
SCRIPT = (
    Reply(content="Let me see.", reasoning_content="Look it up.", tool_calls=CALLS, usage=USAGE),
    call(FINAL),
)
"""Parallel tool calls with reasoning, then the answer, which is a tool too."""
TOOLS_RAN = [
    ("final_answer", "call_z", f'{{"answer":"{ANSWER}"}}', ANSWER),
    ("stock", "call_a", '{"sku":"A7"}', "A7: 3"),
    ("stock", "call_b", '{"sku":"B8"}', "B8: 3"),
]
"""What `list_tools` gives of it; smolagents reads the arguments before a tool has them."""


@smolagents.tool
def stock(sku: str) -> str:
    """How many of an article are there.

    Args:
        sku: The article.
    """
    return f"{sku}: 3"


@smolagents.tool
def broken_stock(sku: str) -> str:
    """How many of an article are there.

    Args:
        sku: The article.
    """
    raise RuntimeError(f"no shelf for {sku}")


@smolagents.tool
def count_all() -> str:
    """How many articles are there."""
    return "6"


def make_agent(
    base_url, *, tools=(stock,), name="shop", kind=smolagents.ToolCallingAgent, **options
):
    model = smolagents.OpenAIModel(
        "m", api_base=base_url, api_key="none", client_kwargs={"max_retries": 0}, retry=False
    )
    return kind(tools=list(tools), model=model, name=name, verbosity_level=0, **options)


def run_whole(agent):
    return agent.run(QUESTION)


def run_streamed(agent):
    *_, last = agent.run(QUESTION, stream=True)
    return last.output


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    "stream_outputs",
    [
        pytest.param(False, id="whole-calls"),
        pytest.param(True, id="streamed-calls", marks=pytest.mark.shows("streaming")),
    ],
)
@pytest.mark.parametrize("run", [run_whole, run_streamed])
def test_two_turns(tmp_path, run, stream_outputs):
    """Parallel tools, each joined to its call; the steps, or the model's answers, as streams."""
    answers = []
    recorded = record(
        tmp_path,
        lambda url: answers.append(run(make_agent(url, stream_outputs=stream_outputs))),
        SCRIPT,
    )
    assert answers == [ANSWER]
    check_wire(recorded, SCRIPT)
    check_trainable(recorded, SCRIPT)
    assert list_tools(recorded) == TOOLS_RAN
    assert draw(recorded)[:2] == ["invoke_agent shop", "  chat m"]
    assert sorted(draw(recorded)[2:4]) == [
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert draw(recorded)[4:] == ["  chat m", "  execute_tool final_answer #call_z"]
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("sub-agents")
def test_a_managed_agent(tmp_path):
    """Its run is inside of the tool call that asked for it."""
    script = [
        call(ToolCall(id="c1", name="inner", arguments='{"task": "A7?"}')),
        call(ToolCall(id="c2", name="final_answer", arguments='{"answer": "3"}')),
        call(ToolCall(id="c3", name="final_answer", arguments='{"answer": "It: 3"}')),
    ]

    def program(url):
        inner = make_agent(url, name="inner", description="Asks.")
        make_agent(url, tools=(), managed_agents=[inner]).run(QUESTION)

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool inner #c1",
        "    invoke_agent inner",
        "      chat m",
        "      execute_tool final_answer #c2",
        "  chat m",
        "  execute_tool final_answer #c3",
    ]


def test_tools_called_by_code(tmp_path):
    """A `CodeAgent` has no tool calls: the tools that its code calls are steps without an id."""
    script = [
        call(content="Thought: look.\n<code>\nprint(stock('A7'))\nprint(stock(sku='B8'))\n</code>"),
        call(content=f"Thought: done.\n<code>\nfinal_answer('{ANSWER}')\n</code>"),
    ]
    answers = []
    recorded = record(
        tmp_path,
        lambda url: answers.append(make_agent(url, kind=smolagents.CodeAgent).run(QUESTION)),
        script,
    )
    assert answers == [ANSWER]
    check_wire(recorded, script)
    assert list_tools(recorded) == [
        (name, None, arguments, result) for name, _, arguments, result in TOOLS_RAN
    ]
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool stock",
        "  execute_tool stock",
        "  chat m",
        "  execute_tool final_answer",
    ]


@pytest.mark.shows("state")
def test_variables_of_code(tmp_path):
    """What the program gives a `CodeAgent`, and what its code makes of it; only what is data."""
    code = "<code>\nimport math\ncount = first + int(stock('A7')[-1])\n</code>"
    script = [call(content=code), call(content=f"<code>\nfinal_answer('{ANSWER}')\n</code>")]

    def program(url):
        agent = make_agent(url, kind=smolagents.CodeAgent)
        agent.run(QUESTION, additional_args={"first": 1, "shelf": object()})

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_states(recorded) == [
        ("variables", {"first": 1}),
        ("variables", {"first": 1, "count": 4}),
    ]


def test_a_tool_that_fails(tmp_path):
    """The step has the error; the model is told, and goes on."""
    broken = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [call(broken), call(FINAL)]
    recorded = record(
        tmp_path, lambda url: make_agent(url, tools=(broken_stock,)).run(QUESTION), script
    )
    check_wire(recorded, script)
    failed = next(span for span in recorded.spans if span.name == "execute_tool broken_stock")
    assert failed.attributes["error.type"] == "smolagents.utils.AgentToolExecutionError"
    assert "no shelf for A7" in recorded.requests[1]["messages"][-1]["content"][0]["text"]
    assert recorded.trajectories[0]["end"] == "terminated"


def test_calls_that_cannot_be_told_apart(tmp_path):
    """Two at once of the same tool without arguments: no id rather than perhaps the other's."""
    twice = [ToolCall(id=f"c{i}", name="count_all", arguments="{}") for i in range(2)]
    script = [call(*twice, CALLS[0]), call(FINAL)]
    recorded = record(
        tmp_path, lambda url: make_agent(url, tools=(stock, count_all)).run(QUESTION), script
    )
    check_wire(recorded, script)
    assert sorted(draw(recorded)[2:5]) == [
        "  execute_tool count_all",
        "  execute_tool count_all",
        "  execute_tool stock #call_a",
    ]


@pytest.mark.shows("error")
def test_a_server_that_fails(tmp_path):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path,
        lambda url: make_agent(url).run(QUESTION),
        [Reply(status=500)],
        raises=smolagents.AgentGenerationError,
    )
    check_end(recorded, "error", "error")


@pytest.mark.shows("cancel")
def test_ctrl_c(tmp_path):
    """A run that is interrupted in a tool is abandoned, and so is the tool."""

    @smolagents.tool
    def stock(sku: str) -> str:
        """How many of an article are there.

        Args:
            sku: The article.
        """
        raise KeyboardInterrupt

    recorded = record(
        tmp_path,
        lambda url: make_agent(url, tools=(stock,)).run(QUESTION),
        [call(CALLS[0])],
        raises=KeyboardInterrupt,
    )
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]
    assert draw(recorded) == ["invoke_agent shop", "  chat m", "  execute_tool stock #call_a"]


@pytest.mark.shows("cancel")
def test_interrupted(tmp_path):
    """`interrupt()` lets the step end, then raises: the run is abandoned."""

    def program(url):
        agent = make_agent(url, step_callbacks=[lambda _step, agent: agent.interrupt()])
        agent.run(QUESTION)

    recorded = record(tmp_path, program, [SCRIPT[0]], raises=smolagents.AgentError)
    check_wire(recorded, [SCRIPT[0]])
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]


def test_a_stream_that_is_left(tmp_path):
    """smolagents' generator refuses to be closed; the run ends, and the program's own begins."""

    def program(url):
        steps = make_agent(url).run(QUESTION, stream=True)
        next(steps)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            steps.close()
        make_agent(url, name="next").run(QUESTION)

    recorded = record(tmp_path, program, [SCRIPT[0], call(FINAL)])
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "invoke_agent next",
        "  chat m",
        "  execute_tool final_answer #call_z",
    ]
    assert [row["end"] for row in recorded.trajectories] == ["terminated", "terminated"]


def test_several_runs_at_once(tmp_path):
    """Each thread's is a trajectory of its own."""

    def program(url):
        with ThreadPoolExecutor(3) as pool:
            runs = [pool.submit(make_agent(url, name=f"a{i}").run, QUESTION) for i in range(3)]
        assert [each.result() for each in runs] == [ANSWER] * 3

    def answer(body):
        return SCRIPT[len(body["messages"]) > 2]

    recorded = record(tmp_path, program, answer)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    assert sorted(span.name for span in recorded.spans if span.parent_id is None) == [
        f"invoke_agent a{i}" for i in range(3)
    ]


def test_put_back():
    """Afterwards the methods are the ones that were there."""
    check_put_back(
        (smolagents.MultiStepAgent, "run"),
        (smolagents.ToolCallingAgent, "process_tool_calls"),
        (smolagents.ToolCallingAgent, "execute_tool_call"),
        (smolagents.Tool, "__call__"),
    )
