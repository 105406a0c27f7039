"""Row name -> calls of a real OpenAI client, answered inside the process from canned bytes.

Messages are parsed from JSON anew for every call, so that no two calls share an object.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai

MODEL = "gpt-4o-mini"
WORDS = [
    "the",
    "agent",
    "moves",
    "north",
    "and",
    "finds",
    "a",
    "closed",
    "door",
    "with",
    "a",
    "lamp",
    "above",
    "it",
]
USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 38,
    "total_tokens": 158,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 12},
}
SHORT_MESSAGES = [
    {"role": "system", "content": "You are a careful agent. Answer in one sentence."},
    {"role": "user", "content": "The door is closed. What do you do next, and why?"},
]
NUM_STREAM_CHUNKS = 40
NUM_LOGPROBS = 256
MESSAGE_CHARS = 800


def write_text(num_chars: int, start: int = 0) -> str:
    """Words of about so many characters."""
    words = itertools.islice(itertools.cycle(WORDS), start, None)
    text = ""
    while len(text) < num_chars:
        text += next(words) + " "
    return text


def build_history(num_messages: int) -> list[dict[str, Any]]:
    """A tool-using agent's history, about 800 characters a message."""
    history: list[dict[str, Any]] = [{"role": "system", "content": write_text(MESSAGE_CHARS)}]
    while len(history) < num_messages:
        history += build_turn(len(history))
    return history[:num_messages]


def build_turn(number: int) -> list[dict[str, Any]]:
    """Two messages: an answer that calls a tool, and the tool's result."""
    arguments = json.dumps({"query": write_text(300, number), "limit": number})
    function = {"name": "look_up", "arguments": arguments}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": write_text(400, number), "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": write_text(MESSAGE_CHARS, number + 1),
        },
    ]


def build_completion(num_logprobs: int = 0) -> bytes:
    """Body of an answer."""
    logprobs = None
    if num_logprobs:
        tokens = [f" {WORDS[number % len(WORDS)]}" for number in range(num_logprobs)]
        entries = [
            {
                "token": token,
                "bytes": list(token.encode()),
                "logprob": -1 / (number + 3),
                "top_logprobs": [],
            }
            for number, token in enumerate(tokens)
        ]
        logprobs = {"content": entries, "refusal": None}
    message = {"role": "assistant", "content": write_text(6 * num_logprobs or 180)}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    envelope = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return json.dumps({**envelope, "choices": [choice], "usage": USAGE}).encode()


def build_events() -> bytes:
    """Server-sent events of a streamed answer: role, text, end, usage."""
    envelope = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"content": write_text(4, number)} for number in range(NUM_STREAM_CHUNKS - 3)]
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    chunks = [{**envelope, "choices": choice, "usage": None} for choice in choices]
    chunks.append({**envelope, "choices": [], "usage": USAGE})
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*events, "data: [DONE]\n\n"]).encode()


class Workload:
    """Clients over an in-process transport, and one method per kind of row."""

    def __init__(self) -> None:
        completion = {"content-type": "application/json"}, build_completion()
        logprobs = {"content-type": "application/json"}, build_completion(NUM_LOGPROBS)
        stream = {"content-type": "text/event-stream"}, build_events()

        def answer(request: httpx2.Request) -> httpx2.Response:
            body = request.content
            if b'"stream":true' in body:
                headers, content = stream
            else:
                headers, content = logprobs if b'"logprobs":true' in body else completion
            return httpx2.Response(200, headers=headers, content=content)

        async def answer_async(request: httpx2.Request) -> httpx2.Response:
            return answer(request)

        self._client = openai.OpenAI(
            api_key="none", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))
        )
        transport = httpx2.MockTransport(answer_async)
        self._async_client = openai.AsyncOpenAI(
            api_key="none", http_client=httpx2.AsyncClient(transport=transport)
        )
        self._loop = asyncio.new_event_loop()
        self._short = json.dumps(SHORT_MESSAGES)
        self._histories = {number: json.dumps(build_history(number)) for number in (2, 20, 200)}
        self._turns = [json.dumps(build_turn(number)) for number in range(1, 400, 2)]
        self.rows: dict[str, Callable[[int], None]] = {
            "short": self.call_short,
            "stream": self.call_stream,
            "16k": lambda num_calls: self.call_history(20, num_calls),
            "200": lambda num_calls: self.call_history(200, num_calls),
            "logprobs": self.call_logprobs,
            "async": self.call_async,
            "agent200": lambda num_calls: self.call_agent(200, num_calls),
        }

    def call_short(self, num_calls: int) -> None:
        """Two short messages, a short answer."""
        for _ in range(num_calls):
            messages = json.loads(self._short)
            answer = self._client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0.7, max_tokens=256
            )
            assert answer.choices[0].message.content

    def call_stream(self, num_calls: int) -> None:
        """The same, answered in 40 chunks."""
        for _ in range(num_calls):
            messages = json.loads(self._short)
            stream = self._client.chat.completions.create(
                model=MODEL,
                messages=messages,
                temperature=0.7,
                max_tokens=256,
                stream=True,
                stream_options={"include_usage": True},
            )
            assert sum(1 for _ in stream) == NUM_STREAM_CHUNKS

    def call_history(self, num_messages: int, num_calls: int) -> None:
        """A long history, a short answer."""
        for _ in range(num_calls):
            self.call(json.loads(self._histories[num_messages]))

    def call_logprobs(self, num_calls: int) -> None:
        """Two short messages, an answer of 256 tokens with their log-probabilities."""
        for _ in range(num_calls):
            messages = json.loads(self._short)
            answer = self._client.chat.completions.create(
                model=MODEL, messages=messages, logprobs=True
            )
            assert len(answer.choices[0].logprobs.content) == NUM_LOGPROBS

    def call_async(self, num_calls: int) -> None:
        """The short call through the asynchronous client."""
        self._loop.run_until_complete(self._call_async(num_calls))

    async def _call_async(self, num_calls: int) -> None:
        for _ in range(num_calls):
            messages = json.loads(self._short)
            await self._async_client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0.7, max_tokens=256
            )

    def call_agent(self, num_messages: int, num_calls: int) -> None:
        """An agent's loop: the history of each call is that of the last one and two messages."""
        for _, messages in zip(range(num_calls), self.grow_history(num_messages), strict=False):
            self.call(messages)

    def call(self, messages: list[dict[str, Any]]) -> None:
        """One call with these messages."""
        self._client.chat.completions.create(model=MODEL, messages=messages)

    def grow_history(self, num_messages: int) -> Iterator[list[dict[str, Any]]]:
        """Histories of so many messages, two more, four more ..., each made anew."""
        for num_turns in range(len(self._turns)):
            messages = json.loads(self._histories[num_messages])
            for turn in self._turns[:num_turns]:
                messages += json.loads(turn)
            yield messages


@contextlib.contextmanager
def run_trajectory(*, is_wanted: bool) -> Iterator[None]:
    """A trajectory of `starpo_trace` round a block of calls, or nothing."""
    if not is_wanted:
        yield
        return
    import starpo_trace

    with starpo_trace.trajectory(task_id="benchmark"):
        yield
