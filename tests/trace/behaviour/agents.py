"""Agents that do all that can go wrong, each a function of a server's URL; they print what they see.

python agents.py URL [NAME ...]      each of them (or all) in turn; what one raises is printed
python agents.py URL --raise NAME    one of them; what it raises ends the process
"""

import asyncio
import ssl
import sys
import types
from collections import UserDict

import openai
from openai.types.chat import ChatCompletionMessage

import starpo_trace

ASK = [{"role": "user", "content": "hi"}]
TLS = ssl.create_default_context()  # made once: it is what makes a client slow to make
TOOLS = [{"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}]


class Stop(BaseException):
    """Ends an agent from deep inside."""


class Mute(Exception):
    """Cannot be printed."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Odd:
    """Cannot be printed, compared, hashed or copied."""

    def fail(self, *_details):
        raise RuntimeError("odd")

    __repr__ = __str__ = __eq__ = __hash__ = __reduce__ = __deepcopy__ = __iter__ = fail


def client_of(url, max_retries=0):
    http_client = openai.DefaultHttpxClient(verify=TLS)
    return openai.OpenAI(
        base_url=url, api_key="none", max_retries=max_retries, http_client=http_client
    )


def async_client_of(url):
    http_client = openai.DefaultAsyncHttpxClient(verify=TLS)
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http_client)


def show(answer):
    print(type(answer).__name__, answer.model_dump_json(exclude_none=True))


def tools(url):
    """Two turns with a tool in between, inside a trajectory with a state and a reward."""
    with client_of(url) as client, starpo_trace.trajectory("agent", task_id="t") as run:
        messages = list(ASK)
        starpo_trace.state({"n": 1})
        answer = client.chat.completions.create(model="tool", messages=messages, tools=TOOLS)
        show(answer)
        call = answer.choices[0].message.tool_calls[0]
        messages.append(answer.choices[0].message)
        with starpo_trace.step("tool", "stock", call_id=call.id) as step:
            step.result({"n": 3})
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "3"})
        show(client.chat.completions.create(model="text", messages=messages, tools=TOOLS))
        starpo_trace.observe(messages)
        starpo_trace.state({"n": 2})
        starpo_trace.reward(1.0, name="solved")
        run.end("terminated")
    print(messages)


def stream(url):
    """Read to the end, left early, closed by `with`, dropped."""
    with client_of(url) as client, starpo_trace.trajectory("agent"):
        for chunk in client.chat.completions.create(model="tool", messages=ASK, stream=True):
            show(chunk)
        for chunk in client.chat.completions.create(model="text", messages=ASK, stream=True):
            show(chunk)
            break
        with client.chat.completions.create(model="text", messages=ASK, stream=True) as chunks:
            show(next(chunks))
        dropped = client.chat.completions.create(model="text", messages=ASK, stream=True)
        print(type(dropped).__name__, sorted(vars(dropped)))
        del dropped
        with client.chat.completions.stream(model="text", messages=ASK) as helper:
            print([event.type for event in helper])


def raw(url):
    """The HTTP response itself, read at once and piece by piece."""
    with client_of(url) as client:
        answer = client.chat.completions.with_raw_response.create(model="text", messages=ASK)
        print(answer.text, answer.http_response.status_code)
        show(answer.parse())
        way = client.chat.completions.with_streaming_response
        with way.create(model="text", messages=ASK) as response:
            print(b"".join(response.iter_bytes()))


def coroutine(url):
    """Async calls and streams, one of them left early."""

    async def run():
        async with async_client_of(url) as client:
            async with starpo_trace.trajectory("agent"):
                show(await client.chat.completions.create(model="text", messages=ASK))
                chunks = await client.chat.completions.create(
                    model="text", messages=ASK, stream=True
                )
                async with chunks:
                    async for chunk in chunks:
                        show(chunk)
                        break
                async for chunk in await client.chat.completions.create(
                    model="text", messages=ASK, stream=True
                ):
                    show(chunk)

    asyncio.run(run())


def cancelled(url):
    """A task cancelled while it waits, and one while it reads."""

    async def ask(client, **options):
        async with starpo_trace.trajectory("agent"):
            answer = await client.chat.completions.create(messages=ASK, **options)
            async for chunk in answer:
                show(chunk)

    async def run():
        async with async_client_of(url) as client:
            for options in ({"model": "hang"}, {"model": "stall", "stream": True}):
                task = asyncio.create_task(ask(client, **options))
                await asyncio.sleep(0.4)
                task.cancel("enough")
                try:
                    await task
                except asyncio.CancelledError as error:
                    print("cancelled", error.args, task.cancelled())

    asyncio.run(run())


def timeout(url):
    """A deadline of asyncio's, and one of the SDK's."""

    async def run():
        async with async_client_of(url) as client:
            async with asyncio.timeout(1.5):
                await client.chat.completions.create(model="hang", messages=ASK)

    try:
        asyncio.run(run())
    except TimeoutError as error:
        print(type(error), error.args, type(error.__cause__))
    with client_of(url) as client:
        client.with_options(timeout=1.5).chat.completions.create(model="hang", messages=ASK)


def api_error(url):
    """An error status."""
    with client_of(url) as client, starpo_trace.trajectory("agent"):
        client.chat.completions.create(model="error", messages=ASK)


def retries(url):
    """Errors that the SDK's retries do not cure."""
    with client_of(url, max_retries=1) as client:
        client.chat.completions.create(model="error", messages=ASK)


def broken_stream(url):
    """The connection breaks in the middle."""
    with client_of(url) as client, starpo_trace.trajectory("agent"):
        for chunk in client.chat.completions.create(model="cut", messages=ASK, stream=True):
            show(chunk)


def no_json(url):
    """An answer that is none."""
    with client_of(url) as client:
        print(repr(client.chat.completions.create(model="nonsense", messages=ASK)))


def wrong_arguments(url):
    """Arguments that the SDK refuses itself."""
    with client_of(url) as client:
        for options in (
            {},
            {"messages": ASK},
            {"messages": ASK, "model": "text", "n": object},
            {"messages": [{"role": "user", "content": {1, 2}}], "model": "text"},
            {"messages": [{"role": "user", "content": Odd()}], "model": "text"},
        ):
            try:
                client.chat.completions.create(**options)
            except Exception as error:
                print(type(error).__name__, str(error)[:60])


def odd_messages(url):
    """Messages as a generator, a tuple, mappings and the SDK's objects."""
    with client_of(url) as client, starpo_trace.trajectory("agent"):
        said = ChatCompletionMessage(role="assistant", content="so")
        for messages in (
            (message for message in ASK),
            tuple(ASK),
            [types.MappingProxyType(ASK[0])],
            [UserDict(ASK[0])],
            [*ASK, said],
            [{**ASK[0], "content": [{"type": "text", "text": "hi"}]}],
            [{**ASK[0], "content": None, "more": {"deep": [1.5, None]}}],
            [],
        ):
            try:
                show(client.chat.completions.create(model="text", messages=messages))
            except Exception as error:
                print(type(error).__name__, str(error)[:60])


def odd_values(url):
    """Values that cannot be written down, in steps, states, rewards and exceptions."""
    with starpo_trace.trajectory("agent") as run:
        for value in (Odd(), {"x": Odd()}, {1, 2}, b"\xff", "\ud800", 2**80, float("nan"), print):
            with starpo_trace.step("tool", "stock", arguments=value) as step:
                step.result(value)
            starpo_trace.state(value)
            starpo_trace.reward(1, explanation=value)
        starpo_trace.reward("much")
        starpo_trace.observe(Odd())
        run.end(Odd())
        try:
            with starpo_trace.step("tool", "stock"):
                raise Mute
        except Mute as error:
            print(type(error).__name__, error.args, error.__context__, error.__cause__)
    raise Mute


@starpo_trace.trajectory("agent")
def decorated(url):
    """A decorated function with a tool that fails, handled and not."""
    with client_of(url) as client:
        show(client.chat.completions.create(model="text", messages=ASK))
    try:
        with starpo_trace.step("tool", "stock"):
            {}["A7"]
    except KeyError as error:
        print(error.args, error.__notes__ if hasattr(error, "__notes__") else None)
        raise OSError("no stock") from error


def group(url):
    """An exception group from parallel tools."""

    async def tool(error):
        with starpo_trace.step("tool", "stock"):
            await asyncio.sleep(0)
            raise error

    async def run():
        async with starpo_trace.trajectory("agent"), asyncio.TaskGroup() as tasks:
            tasks.create_task(tool(ValueError("a")))
            tasks.create_task(tool(OSError("b")))

    asyncio.run(run())


def leave(url, error):
    with client_of(url) as client, starpo_trace.trajectory("agent"):
        for chunk in client.chat.completions.create(model="text", messages=ASK, stream=True):
            show(chunk)
            with starpo_trace.step("tool", "stock"):
                raise error


def interrupt(url):
    """Ctrl-C while a stream is read."""
    leave(url, KeyboardInterrupt("now"))


def system_exit(url):
    """`sys.exit` in a tool."""
    leave(url, SystemExit(7))


def base_exception(url):
    """An exception that is no `Exception`."""
    leave(url, Stop("deep"))


def generator(url):
    """An agent that is a generator and is closed, and one that is thrown into."""

    def steps():
        with client_of(url) as client, starpo_trace.trajectory("agent"):
            try:
                for chunk in client.chat.completions.create(
                    model="text", messages=ASK, stream=True
                ):
                    yield chunk.id
            except GeneratorExit:
                print("closed")
                raise

    agent = steps()
    print(next(agent))
    agent.close()
    agent = steps()
    print(next(agent))
    agent.throw(Stop("thrown"))


AGENTS = (
    *(tools, stream, raw, coroutine, cancelled, timeout, api_error, retries, broken_stream),
    *(no_json, wrong_arguments, odd_messages, odd_values, decorated, group),
    *(interrupt, system_exit, base_exception, generator),
)
BY_NAME = {agent.__name__: agent for agent in AGENTS}


def describe(error):
    """What a program can see of an exception."""
    try:
        text = str(error)
    except RuntimeError:
        text = "?"
    inner = getattr(error, "exceptions", ())
    chain = (error.__cause__, error.__context__, error.__suppress_context__)
    return (
        *(type(error).__name__, text, [describe(each) for each in inner]),
        *(None if each is None else type(each).__name__ for each in chain),
        *sorted(name for name in vars(error) if not name.startswith("__")),
    )


def play(url, names):
    """Each agent in turn, with what it raises."""
    for name in names:
        print("==", name, flush=True)
        try:
            BY_NAME[name](url)
        except BaseException as error:
            print(describe(error))


if __name__ == "__main__":
    if sys.argv[2:3] == ["--raise"]:
        BY_NAME[sys.argv[3]](sys.argv[1])
    else:
        play(sys.argv[1], sys.argv[2:] or BY_NAME)
