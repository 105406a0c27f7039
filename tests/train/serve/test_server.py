"""The server through the real OpenAI SDK, over real HTTP."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from starpo_train.errors import ModelError, ServerError
from starpo_train.serve.app import ModelServer
from starpo_train.serve.process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "move", "parameters": {}}}]
ARGUMENTS = '{"to":  "up"}'
ANSWER = [
    *("<think>", "ice", "</think>", "Going.", "<tool_call>"),
    *('{"name": "move", "arguments": ', ARGUMENTS + "}", "</tool_call>"),
]
IDS: dict[str, Any] = {"logprobs": True, "extra_body": {"return_token_ids": True}}


@pytest.fixture(scope="module")
def chain_server(make_chain_folder: Callable[..., Path], start_server: Any) -> Any:
    with start_server(make_chain_folder(ANSWER)) as running:
        yield running


def ask(running: SimpleNamespace, **options: Any) -> Any:
    return running.client.chat.completions.create(
        **{"model": running.model, "messages": MESSAGES, **options}
    )


def test_an_answer_is_taken_apart(chain_server: SimpleNamespace):
    """Reasoning, content and the call with its arguments as the model wrote them."""
    answer = ask(chain_server, tools=TOOLS)
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.message.reasoning_content == "ice"
    assert choice.message.content == "Going."
    assert (call.function.name, call.function.arguments) == ("move", ARGUMENTS)
    assert choice.finish_reason == "tool_calls"
    assert answer.usage.completion_tokens == len(ANSWER) + 1  # the end of turn is sampled too


def test_a_stream_adds_up_to_the_same_answer(chain_server: SimpleNamespace):
    """Deltas put together are the message; ids and log-probabilities too."""
    whole = ask(chain_server, tools=TOOLS, seed=1, **IDS)
    chunks = list(ask(chain_server, tools=TOOLS, seed=1, stream=True, **IDS))
    choices = [chunk.choices[0] for chunk in chunks]
    deltas = [choice.delta for choice in choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "ice"
    assert "".join(delta.content or "" for delta in deltas) == "Going."
    assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [
        (0, "move", ARGUMENTS)
    ]
    assert choices[-1].finish_reason == "tool_calls"
    assert chunks[0].prompt_token_ids == whole.prompt_token_ids
    assert [i for choice in choices for i in choice.token_ids] == whole.choices[0].token_ids
    streamed = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    assert [entry.token for entry in streamed] == [
        entry.token for entry in whole.choices[0].logprobs.content
    ]


def test_a_stream_ends_with_usage_when_asked(chain_server: SimpleNamespace):
    """One more chunk, without choices."""
    chunks = list(ask(chain_server, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(ANSWER) + 1


def test_calls_are_content_without_tools(chain_server: SimpleNamespace):
    """A client that offered no tools gets no calls."""
    choice = ask(chain_server).choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content.endswith(f'"arguments": {ARGUMENTS}}}</tool_call>')
    assert choice.finish_reason == "stop"


def test_the_next_prompt_extends_this_one(chain_server: SimpleNamespace):
    """Sending the answer back gives a prompt that begins with this prompt and answer."""
    first = ask(chain_server, tools=TOOLS, **IDS)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "moved"}
    history = [*MESSAGES, message.model_dump(exclude_none=True), result]
    second = ask(chain_server, messages=history, tools=TOOLS, **IDS)
    before = first.prompt_token_ids + first.choices[0].token_ids
    assert second.prompt_token_ids[: len(before)] == before


def test_ids_and_logprobs_match_a_plain_forward_pass(random_server: SimpleNamespace):
    """The recorded numbers are what the model gives for the recorded ids."""
    answer = ask(random_server, max_tokens=20, seed=5, top_logprobs=3, **IDS)
    tokenizer = AutoTokenizer.from_pretrained(random_server.model)
    model = AutoModelForCausalLM.from_pretrained(random_server.model)
    prompt_ids, ids = answer.prompt_token_ids, answer.choices[0].token_ids
    with torch.inference_mode():
        expected_TV = model(torch.tensor([prompt_ids + ids])).logits[0].log_softmax(-1)
    entries = answer.choices[0].logprobs.content
    assert tokenizer.decode(prompt_ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert len(entries) == len(ids) > 0
    for offset, (token_id, entry) in enumerate(zip(ids, entries, strict=True)):
        expected_V = expected_TV[len(prompt_ids) - 1 + offset]
        assert entry.logprob == pytest.approx(float(expected_V[token_id]), abs=1e-4)
        best = expected_V.topk(3).values.tolist()
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best, abs=1e-4)


def test_the_same_seed_gives_the_same_answer(random_server: SimpleNamespace):
    """Twice the same request, twice the same ids."""
    first, again, other = (
        ask(random_server, max_tokens=15, seed=seed, **IDS).choices[0].token_ids
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_stop_string_ends_the_answer(chain_server: SimpleNamespace):
    """The text ends before it; the ids go on up to the token that completed it."""
    answer = ask(chain_server, stop=["oing"], **IDS).choices[0]
    assert answer.message.content == "G"
    assert len(answer.token_ids) == ANSWER.index("Going.") + 1
    assert answer.finish_reason == "stop"


def test_max_tokens_cuts_the_answer(random_server: SimpleNamespace):
    """And says so."""
    choice = ask(random_server, max_tokens=1, temperature=0, **IDS).choices[0]
    assert (choice.finish_reason, len(choice.token_ids)) == ("length", 1)


def test_tools_are_text_where_the_template_has_none(
    make_chain_folder: Callable[..., Path], start_server: Any
):
    """Calls still come back as calls, and the next prompt still extends this one."""
    plain = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{{ m.content }}<|im_end|>"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}"
        "{% endif %}"
    )
    with start_server(make_chain_folder(ANSWER, template=plain)) as running:
        first = ask(running, tools=TOOLS, **IDS)
        message = first.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "moved"}
        history = [*MESSAGES, message.model_dump(exclude_none=True), result]
        second = ask(running, messages=history, tools=TOOLS, **IDS)
    before = first.prompt_token_ids + first.choices[0].token_ids
    assert message.tool_calls[0].function.arguments == ARGUMENTS
    assert second.prompt_token_ids[: len(before)] == before


def test_no_chat_template_is_a_model_error(make_chain_folder: Callable[..., Path]):
    """Said when the server starts, not at the first request."""
    with pytest.raises(ModelError, match="has no chat template"):
        ModelServer(make_chain_folder(["hi"], template=None), max_batch=1)


def test_a_folder_without_a_model_is_a_model_error(tmp_path: Path):
    """The error names the folder."""
    with pytest.raises(ModelError, match=f"{tmp_path.name}' cannot be loaded"):
        ModelServer(tmp_path, max_batch=1)


def test_bad_requests_get_openai_errors(random_server: SimpleNamespace):
    """400 and 404 become the SDK's own exceptions, with the reason."""
    with pytest.raises(openai.BadRequestError, match="temperature must be a number"):
        ask(random_server, temperature=3)
    with pytest.raises(openai.NotFoundError, match="model 'gpt-9' does not exist"):
        ask(random_server, model="gpt-9")
    with pytest.raises(openai.BadRequestError, match="context of 512") as caught:
        ask(random_server, messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="there is no POST /v1/embeddings"):
        random_server.client.embeddings.create(model="m", input="x")


def test_models_are_listed(random_server: SimpleNamespace):
    """One model, known by its path."""
    assert [model.id for model in random_server.client.models.list()] == [random_server.model]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(
    random_server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *, stream: bool
):
    """The row is dropped long before its 500 tokens are sampled."""
    engine = random_server.server._engine
    decode, slow = engine._decode, []

    def decode_slowly() -> None:
        slow.append(1)
        time.sleep(0.02)
        decode()

    monkeypatch.setattr(engine, "_decode", decode_slowly)
    monkeypatch.setattr(engine, "_end_ids", frozenset())
    body = (
        f'{{"model": "{random_server.model}", "messages": [{{"role": "user", "content": "x"}}], '
        f'"max_tokens": 400, "stream": {str(stream).lower()}}}'
    )
    host, port = random_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall((head + body).encode())
        while not slow:
            time.sleep(0.01)
    while engine.num_active:
        time.sleep(0.01)
    assert len(slow) < 300


@pytest.mark.slow
def test_a_server_process_answers_and_stops(make_chain_folder: Callable[..., Path]):
    """In a process of its own, on a free port, gone at the end."""
    folder = make_chain_folder(ANSWER)
    with ServerProcess(folder) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="none")
        answer = client.chat.completions.create(model=server.model, messages=MESSAGES, tools=TOOLS)
        client.close()
        process_id = server.process_id
    assert answer.choices[0].message.content == "Going."
    assert not Path(f"/proc/{process_id}").exists()


@pytest.mark.slow
def test_a_server_that_dies_says_why(tmp_path: Path):
    """The end of its log is in the error."""
    with (
        pytest.raises(ServerError, match=r"ended with code 2(.|\n)*cannot be loaded"),
        ServerProcess(tmp_path),
    ):
        pass
