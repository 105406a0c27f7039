"""Two tiny models, and one of them behind real HTTP."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from starpo_train.serve.app import ModelServer

MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
TOOLS_TEMPLATE = """\
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool.function.name }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", \
"arguments": {{ call.function.arguments if call.function.arguments is string \
else call.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PLAIN_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_tokenizer(template: str | None, words: list[str]) -> PreTrainedTokenizerFast:
    """One token per byte, per marker and per word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([*MARKERS, *words])
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: every byte is about as likely as any other."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = make_tokenizer(TOOLS_TEMPLATE, [])
    model = make_model(tokenizer, hidden_size=32)
    model.lm_head.weight.data *= 20  # uneven enough for temperature and top-p to matter
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_chain_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model that always gives one answer, written as a list of tokens.

    Embeddings are one-hot and the layers add nothing, so the output head is a table: current
    token -> next token. The answer starts behind the newline that ends the prompt.
    """

    def make(answer: list[str], *, template: str | None = TOOLS_TEMPLATE) -> Path:
        folder = tmp_path_factory.mktemp("chain")
        tokenizer = make_tokenizer(template, [t for t in answer if t not in MARKERS])
        model = make_model(tokenizer, hidden_size=len(tokenizer))
        newline = tokenizer.encode("\n", add_special_tokens=False)[0]
        ids = tokenizer.convert_tokens_to_ids(answer)
        chain = [newline, *ids, tokenizer.eos_token_id]
        assert len(set(chain)) == len(chain), "each token of the answer has one successor"
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer)))
            model.lm_head.weight.zero_()
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            for current, following in itertools.pairwise(chain):
                model.lm_head.weight[following, current] = 2.0
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def start_server() -> Callable[..., Any]:
    """A context manager: model folder -> running server and an OpenAI client for it."""

    @contextmanager
    def start(folder: Path, *, max_batch: int = 8) -> Iterator[SimpleNamespace]:
        server = ModelServer(folder, max_batch=max_batch)
        listener = socket.create_server(("127.0.0.1", 0))
        runner = uvicorn.Server(uvicorn.Config(server.app, log_level="error"))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
        thread.start()
        while not runner.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=180)
        try:
            yield SimpleNamespace(client=client, url=url, model=str(folder), server=server)
        finally:
            client.close()
            runner.should_exit = True
            thread.join()
            server.close()
            listener.close()

    return start


@pytest.fixture(scope="session")
def random_server(random_folder: Path, start_server: Any) -> Iterator[SimpleNamespace]:
    with start_server(random_folder) as running:
        yield running
