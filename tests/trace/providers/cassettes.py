"""Recorded conversations (VCR cassettes) -> the same requests through the real SDKs, again."""

import gzip
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anthropic
import boto3
import openai
import yaml
from botocore.config import Config
from google import genai
from google.genai import types
from servers_scripted import Answer

_SENT_HEADERS = frozenset({"content-type", "content-encoding", "x-amzn-requestid"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One recorded request and what was answered."""

    host: str
    """Host that it was sent to."""
    path: str
    """Path, without a query."""
    body: Any
    """JSON that was sent; None for a GET."""
    answer: bytes
    """Body of the answer, decompressed."""
    headers: dict[str, str]
    """Headers of the answer, names in lower case."""

    @property
    def is_stream(self) -> bool:
        """Whether the answer came in events."""
        return "json" not in self.headers.get("content-type", "json")

    def make_answer(self) -> Answer:
        """The answer, as a scripted server sends it."""
        headers = {name: self.headers[name] for name in _SENT_HEADERS & self.headers.keys()}
        kind = headers.pop("content-type", "application/json")
        is_zipped = headers.get("content-encoding") == "gzip"
        data = gzip.compress(self.answer) if is_zipped else self.answer
        pieces = [data[start : start + 700] for start in range(0, len(data), 700)]
        return Answer(chunks=pieces, content_type=kind, headers=headers)


def read_cassette(path: Path) -> list[Exchange]:
    """Cassette -> its exchanges with a model, in order."""
    recorded = yaml.load(path.read_bytes(), yaml.CSafeLoader)["interactions"]
    exchanges = (_read_exchange(each["request"], each["response"]) for each in recorded)
    return [each for each in exchanges if "mcp" not in each.host and "/traces/" not in each.path]


def _read_exchange(request: dict[str, Any], response: dict[str, Any]) -> Exchange:
    url = urlsplit(request["uri"])
    headers = {name.lower(): value[0] for name, value in (response.get("headers") or {}).items()}
    answer = _read_body(response)
    sent = _read_body(request)
    return Exchange(
        host=str(url.hostname),
        path=url.path,
        body=json.loads(sent) if sent else None,
        answer=gzip.decompress(answer) if answer[:2] == b"\x1f\x8b" else answer,
        headers=headers,
    )


def _read_body(message: dict[str, Any]) -> bytes:
    if message.get("parsed_body") is not None:
        return json.dumps(message["parsed_body"]).encode()
    body = message.get("body")
    text = body.get("string") if isinstance(body, dict) else body
    return text.encode() if isinstance(text, str) else text or b""


def send_again(exchange: Exchange, url: str) -> None:
    """Ask a server at `url` what was asked then, and read the answer to its end."""
    for ending, send in _SENDERS.items():
        if exchange.path.endswith(ending) or f"{ending}/" in exchange.path:
            return send(exchange, url)
    raise AssertionError(f"{exchange.path}: no way to send it")


def _send_chat(exchange: Exchange, url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions.create
        _read_all(create(**_arrange(create, exchange.body)))


def _send_response(exchange: Exchange, url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        if exchange.body is None:
            client.responses.retrieve(exchange.path.rpartition("/")[2], stream=False)
            return
        create = client.responses.create
        _read_all(create(**_arrange(create, exchange.body)))


def _send_message(exchange: Exchange, url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        create = client.beta.messages.create
        _read_all(create(**_arrange(create, exchange.body)))


def _send_generate(exchange: Exchange, url: str) -> None:
    model = exchange.path.rpartition("/")[2].partition(":")[0]
    body = exchange.body
    config = types.GenerateContentConfig.model_validate(
        {
            **body["generationConfig"],
            "systemInstruction": body["systemInstruction"],
            "tools": body["tools"],
        }
    )
    contents = [types.Content.model_validate(content) for content in body["contents"]]
    options = types.HttpOptions(base_url=url)
    with genai.Client(api_key="none", http_options=options) as client:
        client.models.generate_content(model=model, contents=contents, config=config)


def _send_converse_stream(exchange: Exchange, url: str) -> None:
    client = _make_bedrock_client(url)
    answer = client.converse_stream(modelId=_find_model(exchange), **exchange.body)
    _read_all(answer["stream"])
    client.close()


def _send_invoke_stream(exchange: Exchange, url: str) -> None:
    client = _make_bedrock_client(url)
    answer = client.invoke_model_with_response_stream(
        modelId=_find_model(exchange), body=json.dumps(exchange.body)
    )
    _read_all(answer["body"])
    client.close()


def _make_bedrock_client(url: str) -> Any:
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def _find_model(exchange: Exchange) -> str:
    return unquote(exchange.path.split("/")[2])


_SENDERS: dict[str, Callable[[Exchange, str], None]] = {
    "/chat/completions": _send_chat,
    "/responses": _send_response,
    "/messages": _send_message,
    ":generateContent": _send_generate,
    "/converse-stream": _send_converse_stream,
    "/invoke-with-response-stream": _send_invoke_stream,
}


def _arrange(create: Callable[..., Any], body: dict[str, Any]) -> dict[str, Any]:
    """Body -> arguments of the method, what it has no name for in `extra_body`."""
    names = inspect.signature(create).parameters
    known = {name: value for name, value in body.items() if name in names}
    others = {name: value for name, value in body.items() if name not in names}
    return {**known, "extra_body": others} if others else known


def _read_all(answer: Any) -> None:
    if not isinstance(answer, Iterator) and not hasattr(answer, "close"):
        return
    try:
        for _ in answer:
            pass
    except openai.APIError:  # that the server reports in a stream
        pass


def group_calls(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """Exchanges -> those of one call; one that runs in the background is asked for again."""
    calls: list[list[Exchange]] = []
    for exchange in exchanges:
        if exchange.body is None:
            calls[-1].append(exchange)
        else:
            calls.append([exchange])
    return calls
