"""DSPy: what its model's server saw is what was recorded."""

import asyncio
import inspect
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from matrix import Framework

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its price list, without a network
dspy = pytest.importorskip("dspy", reason="dspy is not installed")

from dspy._vendor.lm15.transports._async import StdlibAsyncTransport  # noqa: E402
from dspy._vendor.lm15.transports._sync import StdlibTransport  # noqa: E402
from dspy.predict.react_v2 import ReActV2  # noqa: E402
from scenario import (  # noqa: E402
    ANSWER,
    CALLS,
    LATE,
    QUESTION,
    RAN_PARSED,
    USAGE,
    broken_stock,
    cancel_soon,
    check_end,
    check_trainable,
    check_wire,
    draw,
    list_ran,
    list_tools,
    record,
    stock,
    stock_async,
)
from servers_scripted import Answer, AnswerServer  # noqa: E402

import starpo_trace  # noqa: E402
from starpo_trace import semconv  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(
    name="DSPy",
    packages=("dspy",),
    page="dspy",
    exempt={"state": "a module keeps none from step to step; what an agent did is in its prompts"},
)
SUBMIT = Reply(
    tool_calls=[ToolCall(id="call_c", name="submit", arguments=json.dumps({"answer": ANSWER}))],
    usage=USAGE,
)
NATIVE = (
    Reply(content="Let me see.", reasoning_content="Look it up.", tool_calls=CALLS, usage=USAGE),
    SUBMIT,
)
"""Parallel tool calls with reasoning, then the answer, which is a call too."""
TREE = [
    "invoke_agent ReActV2",
    "  chat m",
    "  execute_tool stock #call_a",
    "  execute_tool stock #call_b",
    "  chat m",
    "  execute_tool submit #call_c",
]


def write_fields(**fields):
    """An answer in DSPy's text protocol."""
    told = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*told, "[[ ## completed ## ]]"])


def write_step(tool, **arguments):
    return Reply(
        content=write_fields(
            next_thought="Look.", next_tool_name=tool, next_tool_args=json.dumps(arguments)
        )
    )


TOLD = Reply(content=write_fields(reasoning="I saw.", answer=ANSWER))
TEXT = (write_step("stock", sku="A7"), write_step("finish"), TOLD)
"""The turns of `ReAct`, which asks once more for the answer."""


def make_lm(base_url, **options):
    options = {"cache": False, "num_retries": 0, **options}
    return dspy.LM("openai/m", api_base=base_url, api_key="none", **options)


def use(base_url, **options):
    """Settings of a program."""
    return dspy.context(
        lm=make_lm(base_url, **options),
        adapter=dspy.ChatAdapter(use_native_function_calling=True),
    )


def make_agent(*, tools=(stock,), kind=ReActV2, **options):
    return kind("question -> answer", tools=list(tools), **options)


def run(base_url, agent=None, **options):
    with use(base_url, **options):
        return (agent or make_agent())(question=QUESTION).answer


async def ask(base_url, agent=None, **options):
    with use(base_url, **options):
        return (await (agent or make_agent()).acall(question=QUESTION)).answer


def run_async(base_url, agent=None, **options):
    return asyncio.run(ask(base_url, agent, **options))


GIVEN = {"answer": ANSWER}


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", [run, pytest.param(run_async, marks=pytest.mark.shows("async"))])
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
def test_two_turns(tmp_path, run, engine):
    """Each tool is joined to its call, through DSPy's own client and through LiteLLM."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(url, engine=engine)), NATIVE)
    assert answers == [ANSWER]
    check_wire(recorded, NATIVE)
    assert list_ran(recorded)[:2] == RAN_PARSED
    assert list_tools(recorded)[2][:2] == ("submit", "call_c")
    assert json.loads(list_tools(recorded)[2][3]) == GIVEN
    assert draw(recorded) == TREE
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("llm", "tools")
@pytest.mark.parametrize("run", [run, run_async])
def test_react(tmp_path, run):
    """Its calls are text: a tool has no call id, and what it gave is in the next prompt."""
    answers = []
    recorded = record(
        tmp_path, lambda url: answers.append(run(url, make_agent(kind=dspy.ReAct))), TEXT
    )
    assert answers == [ANSWER]
    check_wire(recorded, TEXT)
    check_trainable(recorded, TEXT)
    assert sorted(list_ran(recorded)) == [
        ("finish", None, {}, "Completed."),
        ("stock", None, {"sku": "A7"}, "A7: 3"),
    ]
    assert draw(recorded) == [
        "invoke_agent ReAct",
        "  chat m",
        "  execute_tool stock",
        "  chat m",
        "  execute_tool finish",
        "  chat m",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"


def list_streams(recorded):
    return [bool(request.get("stream")) for request in recorded.requests]


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
def test_streamed(tmp_path, is_async, engine):
    """The same from a stream, in which the program runs in a thread."""
    answers = []

    async def read(url):
        agent = dspy.streamify(make_agent(), is_async_program=is_async)
        with use(url, engine=engine):
            given = [each async for each in agent(question=QUESTION)]
        answers.append(given[-1].answer)

    recorded = record(tmp_path, lambda url: asyncio.run(read(url)), NATIVE)
    assert answers == [ANSWER]
    assert list_streams(recorded) == [True, True]
    check_wire(recorded, NATIVE)
    assert draw(recorded) == TREE
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.parametrize("run", [run, run_async])
@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
def test_a_module_that_only_asks(tmp_path, run, kind):
    """By itself it is a run too."""
    answers = []
    recorded = record(
        tmp_path, lambda url: answers.append(run(url, kind("question -> answer"))), [TOLD]
    )
    assert answers == [ANSWER]
    check_wire(recorded, [TOLD])
    check_trainable(recorded, [TOLD])
    assert draw(recorded) == [f"invoke_agent {kind.__name__}", "  chat m"]


class Desk(dspy.Module):
    """A program of a user's: an agent, then a module that only asks."""

    def __init__(self):
        super().__init__()
        self.shop = make_agent()
        self.tell = dspy.Predict("found -> answer")

    def forward(self, question):
        return self.tell(found=self.shop(question=question).answer)

    async def aforward(self, question):
        found = await self.shop.acall(question=question)
        return await self.tell.acall(found=found.answer)


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", [run, run_async])
def test_a_module_with_an_agent(tmp_path, run):
    """The program's module is the run, the agent a span of it; what only asks is none."""
    script = [*NATIVE, Reply(content=write_fields(answer="Six."))]
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(url, Desk())), script)
    assert answers == ["Six."]
    check_wire(recorded, script)
    assert draw(recorded) == ["invoke_agent Desk", *("  " + each for each in TREE), "  chat m"]


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", [run, run_async])
def test_an_agent_as_a_tool(tmp_path, run):
    """Its run is inside of the tool that runs it."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments='{"question": "A7?"}')]),
        write_step("finish"),
        TOLD,
        SUBMIT,
    ]

    def program(url):
        inner = make_agent(tools=(), kind=dspy.ReAct)

        def ask_shop(question: str) -> str:
            """Asks."""
            return inner(question=question).answer

        assert run(url, make_agent(tools=(ask_shop,))) == ANSWER

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent ReActV2",
        "  chat m",
        "  execute_tool ask_shop #c1",
        "    invoke_agent ReAct",
        "      chat m",
        "      execute_tool finish",
        "      chat m",
        "  chat m",
        "  execute_tool submit #call_c",
    ]


def test_an_async_tool(tmp_path):
    """Recorded as any other is."""
    tool = dspy.Tool(stock_async, name="stock")
    recorded = record(tmp_path, lambda url: run_async(url, make_agent(tools=(tool,))), NATIVE)
    check_wire(recorded, NATIVE)
    assert list_ran(recorded)[:2] == RAN_PARSED


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [run, run_async])
def test_a_tool_that_fails(tmp_path, run):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), SUBMIT]
    recorded = record(tmp_path, lambda url: run(url, make_agent(tools=(broken_stock,))), script)
    check_wire(recorded, script)
    told = [each for each in recorded.requests[1]["messages"] if each["role"] == "tool"]
    assert "no shelf for A7" in told[0]["content"]
    (tool,) = [span for span in recorded.spans if span.name == "execute_tool broken_stock"]
    assert tool.attributes["error.type"] == "RuntimeError"
    assert tool.attributes[semconv.TOOL_CALL_ID] == "c1"
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [run, run_async])
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
def test_a_server_that_fails(tmp_path, run, engine):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path, lambda url: run(url, engine=engine), [Reply(status=500)], raises=Exception
    )
    check_end(recorded, "error", "error")
    (call,) = [span for span in recorded.spans if span.name == "chat m"]
    assert call.attributes["error.type"] == "500" or engine == "litellm"


def test_a_call_that_is_tried_again(tmp_path):
    """Each attempt that the server saw is a call."""
    script = [Reply(status=500), *NATIVE]
    recorded = record(tmp_path, lambda url: run(url, num_retries=1, engine="lm15"), script)
    assert [turn["outcome"] for turn in recorded.turns] == ["error", "ok", "ok"]
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
def test_cancelled(tmp_path, engine):
    """A run that is cancelled while its model answers is abandoned."""

    async def cancel(url):
        await cancel_soon(ask(url, engine=engine))

    recorded = record(
        tmp_path, lambda url: asyncio.run(cancel(url)), LATE, raises=asyncio.CancelledError
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.parametrize("run", [run, run_async])
@pytest.mark.parametrize(
    ("kind", "script"),
    [(dspy.ReAct, (TEXT[0], TOLD)), (ReActV2, (NATIVE[0], SUBMIT))],
    ids=["ReAct", "ReActV2"],
)
def test_too_many_iterations(tmp_path, run, kind, script):
    """An agent that its limit ends was cut short, also where it is made to answer."""
    agent = make_agent(kind=kind, max_iters=1)
    recorded = record(tmp_path, lambda url: run(url, agent), script)
    check_wire(recorded, script)
    check_end(recorded, "truncated", "ok", "ok")
    assert recorded.spans[0].attributes[semconv.TRAJECTORY_END_REASON] == "max iterations"


def test_an_agent_that_answers_at_its_limit(tmp_path):
    """The last step that it had was enough."""
    script = [TEXT[1], TOLD]
    agent = make_agent(kind=dspy.ReAct, max_iters=1)
    recorded = record(tmp_path, lambda url: run(url, agent), script)
    check_end(recorded, "terminated", "ok", "ok")


def answer_by_history(body):
    """For runs at the same time: the answer once a tool's result is there, else the calls."""
    return NATIVE[any(message["role"] == "tool" for message in body["messages"])]


def run_threads(url):
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: run(url), range(3))) == [ANSWER] * 3


def run_tasks(url):
    async def ask_all():
        return await asyncio.gather(*(ask(url) for _ in range(3)))

    assert asyncio.run(ask_all()) == [ANSWER] * 3


def run_parallel(url):
    agent = make_agent()
    with use(url):
        examples = [dspy.Example(question=QUESTION).with_inputs("question") for _ in range(3)]
        given = dspy.Parallel(num_threads=3, disable_progress_bar=True)(
            [(agent, each) for each in examples]
        )
    assert [each.answer for each in given] == [ANSWER] * 3


@pytest.mark.parametrize("run_all", [run_threads, run_tasks, run_parallel])
def test_several_runs_at_once(tmp_path, run_all):
    """Each is a trajectory of its own, of one agent too."""
    recorded = record(tmp_path, run_all, answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    assert len(list_tools(recorded)) == 9


class Crowd(dspy.Module):
    """Asks an agent three times at once."""

    def __init__(self):
        super().__init__()
        self.shop = make_agent()

    def forward(self, question):
        example = dspy.Example(question=question).with_inputs("question")
        parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
        return parallel([(self.shop, example) for _ in range(3)])[0]


def test_agents_at_once_in_a_module(tmp_path):
    """All of them are in its run, each around what it did."""
    recorded = record(tmp_path, lambda url: run(url, Crowd()), answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [6]
    tree = draw(recorded)
    assert tree[0] == "invoke_agent Crowd"
    assert sorted(tree[1:]) == sorted(["  " + each for each in TREE] * 3)


def test_an_answer_from_the_cache(tmp_path):
    """No model was called."""
    dspy.configure_cache(enable_disk_cache=False)

    def program(url):
        for _ in range(2):
            assert run(url, dspy.Predict("question -> answer"), cache=True) == ANSWER

    recorded = record(tmp_path, program, [TOLD])
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [0, 1]


def test_inside_of_a_run_that_is_named(tmp_path):
    """The program's own run is the trajectory, the agent a span of it."""

    def program(url):
        with starpo_trace.trajectory("mine"):
            run(url)

    recorded = record(tmp_path, program, NATIVE)
    check_wire(recorded, NATIVE)
    assert draw(recorded) == ["invoke_agent mine", *("  " + each for each in TREE)]


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": TOLD.content}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 30, "output_tokens": 12},
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "m",
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": TOLD.content, "annotations": []}],
        }
    ],
    "usage": {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42},
}


@pytest.mark.parametrize(
    ("model", "options", "body", "provider"),
    [
        ("anthropic/claude-sonnet-4-5", {}, MESSAGE, "anthropic"),
        ("openai/m", {"model_type": "responses"}, RESPONSE, "openai"),
    ],
    ids=["anthropic", "responses"],
)
def test_other_protocols(tmp_path, model, options, body, provider):
    """Its own client speaks them without their SDKs; they are recorded as with these."""

    def program(_url):
        answer = Answer(chunks=[json.dumps(body).encode()])
        with AnswerServer(answer) as server:
            base = f"http://127.0.0.1:{server.port}/v1"
            lm = dspy.LM(
                model, api_base=base, api_key="none", cache=False, engine="lm15", **options
            )
            with dspy.context(lm=lm):
                assert dspy.Predict("question -> answer")(question=QUESTION).answer == ANSWER
            asked.extend(json.loads(request.body) for request in server.requests)

    asked = []
    recorded = record(tmp_path, program, [])
    check_end(recorded, "terminated", "ok")
    (turn,) = recorded.turns
    assert turn["text"] == TOLD.content
    assert (turn["input_tokens"], turn["output_tokens"]) == (30, 12)
    (call,) = [span for span in recorded.spans if span.name.startswith("chat ")]
    assert call.attributes["gen_ai.provider.name"] == provider
    assert QUESTION in json.dumps(asked[0])
    assert QUESTION in json.dumps(recorded.read_prompt(turn))


def test_a_body_that_is_cut(tmp_path):
    """A connection that breaks in a stream ends the call and the run as the error it was."""
    reply = Reply(content=TOLD.content, cut_after_chunks=2)

    async def read(url):
        ask = dspy.streamify(dspy.Predict("question -> answer"))
        with use(url, engine="lm15"):
            return [each async for each in ask(question=QUESTION)]

    recorded = record(tmp_path, lambda url: asyncio.run(read(url)), [reply] * 9, raises=Exception)
    assert [row["end"] for row in recorded.trajectories] == ["error"]
    assert {turn["outcome"] for turn in recorded.turns} == {"error"}
    assert len(recorded.turns) == len(recorded.requests)


class Finder(dspy.Module):
    """Looks up, then asks."""

    def __init__(self):
        super().__init__()
        self.look = dspy.Retrieve(k=1)
        self.tell = dspy.Predict("found -> answer")

    def forward(self, question):
        return self.tell(found=self.look(question).passages[0])


def find_passages(query, k, **_options):
    return [dspy.Example(long_text=f"{query} 3")][:k]


def test_a_retrieval(tmp_path):
    """A step, with what was found."""

    def program(url):
        with dspy.context(rm=find_passages):
            run(url, Finder())

    recorded = record(tmp_path, program, [TOLD])
    check_wire(recorded, [TOLD])
    assert draw(recorded) == ["invoke_agent Finder", "  retrieval Retrieve", "  chat m"]
    told = recorded.spans[1].attributes
    assert told[semconv.TOOL_CALL_ARGUMENTS] == QUESTION
    assert json.loads(told[semconv.TOOL_CALL_RESULT]) == [f"{QUESTION} 3"]


def test_put_back():
    """Afterwards the classes are the ones that were there, and none has another signature."""
    places = [
        *[(owner, name) for owner in (dspy.Module, dspy.Tool) for name in ("__call__", "acall")],
        *[(ReActV2, name) for name in ("_execute_tool_calls", "_aexecute_tool_calls")],
        *[(ReActV2, name) for name in ("_forced_submit", "_aforced_submit")],
        (dspy.Retrieve, "__call__"),
        (dspy.Embeddings, "__call__"),
        (StdlibTransport, "stream"),
        (StdlibAsyncTransport, "_do_stream"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    signatures = [inspect.signature(each) for each in during]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [inspect.signature(each) for each in before] == signatures
    after = [vars(owner)[name] for owner, name in places]
    assert all(old is new for old, new in zip(before, after, strict=True))
