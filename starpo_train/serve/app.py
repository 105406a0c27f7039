"""HTTP <-> the engine: `/v1/chat/completions`, `/v1/models`, `/health`."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from starpo_train.serve.engine import Engine
from starpo_train.serve.generation import Generation, GenerationRequest, SampledToken
from starpo_train.serve.loading import find_max_context, load_model
from starpo_train.serve.requests import ChatRequest, RequestError, parse_chat_request
from starpo_train.serve.responses import ResponseBuilder, build_error, build_logprobs
from starpo_train.serve.template import ChatRenderer, Prompt, TemplateError
from starpo_train.serve.toolparse import AnswerParser, join_pieces


class ModelServer:
    """One loaded model behind HTTP.

    Args:
        model_path: folder (or hub name) of a transformers causal language model.
        max_batch: rows decoded at once.

    Raises:
        ModelError: the model cannot be loaded, has no chat template, or attends in a way that
            this server does not implement.
    """

    def __init__(self, model_path: str | Path, *, max_batch: int) -> None:
        self._name = str(model_path)
        self._created = int(time.time())
        model, self._tokenizer = load_model(model_path)
        self._renderer = ChatRenderer(self._tokenizer, name=self._name)
        self._engine = Engine(
            model, self._tokenizer, max_batch=max_batch, max_context=find_max_context(model)
        )
        self.app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

    def close(self) -> None:
        """Stop sampling."""
        self._engine.close()

    async def health(self, _: Request) -> Response:
        """Ready, and how busy."""
        return _json_response({"status": "ok", "active": self._engine.num_active})

    async def models(self, _: Request) -> Response:
        """The one model."""
        entry = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "starpo",
            "max_model_len": self._engine.max_context,
        }
        return _json_response({"object": "list", "data": [entry]})

    async def chat(self, http_request: Request) -> Response:
        """Answer a chat, at once or as a stream; a client that leaves frees its slot."""
        try:
            request = parse_chat_request(_parse_json(await http_request.body()))
            prompt = self._render(request)
            if request.stream:
                return StreamingResponse(
                    self._stream(request, prompt), media_type="text/event-stream"
                )
            return _json_response(await self._answer(request, prompt, http_request))
        except ClientDisconnect:
            return Response(status_code=499)
        except RequestError as error:
            return _json_response(build_error(error), status=error.status)

    def _render(self, request: ChatRequest) -> Prompt:
        if request.model not in {self._name, Path(self._name).name}:
            raise RequestError(
                f"the model {request.model!r} does not exist; this server has {self._name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )
        try:
            prompt = self._renderer.render_chat(request.messages, request.tools)
        except TemplateError as error:
            raise RequestError(str(error), param="messages") from error
        limit = self._engine.max_context
        if not prompt.ids or len(prompt.ids) >= limit:
            raise RequestError(
                f"the prompt has {len(prompt.ids)} tokens; this model's context of {limit} must "
                "hold at least one and leave room for an answer: shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )
        return prompt

    async def _answer(
        self, request: ChatRequest, prompt: Prompt, http_request: Request
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Generation] = loop.create_future()
        generation = self._engine.submit(
            _generation_request(request, prompt, self._engine.max_context),
            on_done=lambda result: _call_in(loop, _set_result, done, result),
        )
        leaving = asyncio.create_task(_wait_for_disconnect(http_request))
        try:
            await asyncio.wait({done, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not done.done():
                generation.cancel()
        if not done.done():
            raise ClientDisconnect
        if generation.error is not None:
            raise _server_error(generation.error)
        parser = self._parser(request, prompt)
        pieces = parser.feed(generation.text) + parser.finish()
        return ResponseBuilder(request, prompt.ids).build_response(
            join_pieces(pieces),
            token_ids=[token.token_id for token in generation.tokens],
            logprobs=self._logprobs(request, generation.tokens),
            finish_reason=str(generation.finish_reason),
        )

    async def _stream(self, request: ChatRequest, prompt: Prompt) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[SampledToken | Generation] = asyncio.Queue()
        generation = self._engine.submit(
            _generation_request(request, prompt, self._engine.max_context),
            on_token=lambda token: _call_in(loop, events.put_nowait, token),
            on_done=lambda result: _call_in(loop, events.put_nowait, result),
        )
        parser = self._parser(request, prompt)
        builder = ResponseBuilder(request, prompt.ids)
        try:
            while isinstance(event := await events.get(), SampledToken):
                yield _event(
                    builder.build_chunk(
                        parser.feed(event.text),
                        token_ids=[event.token_id],
                        logprobs=self._logprobs(request, [event]),
                    )
                )
            if event.error is not None:
                yield _event(build_error(_server_error(event.error)))
                return
            pieces = parser.feed(event.tail) + parser.finish()
            reason = str(event.finish_reason)
            yield _event(
                builder.build_chunk(pieces, token_ids=[], logprobs=None, finish_reason=reason)
            )
            if request.include_usage:
                yield _event(builder.build_usage_chunk(len(event.tokens)))
            yield b"data: [DONE]\n\n"
        finally:
            generation.cancel()

    def _parser(self, request: ChatRequest, prompt: Prompt) -> AnswerParser:
        return AnswerParser(thinking=prompt.thinking, tools=bool(request.tools))

    def _logprobs(self, request: ChatRequest, tokens: list[SampledToken]) -> dict[str, Any] | None:
        if not request.logprobs:
            return None
        return build_logprobs(
            [
                (
                    self._token_text(token.token_id),
                    token.logprob,
                    [(self._token_text(token_id), value) for token_id, value in token.top],
                )
                for token in tokens
            ]
        )

    def _token_text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id])


def _generation_request(
    request: ChatRequest, prompt: Prompt, max_context: int
) -> GenerationRequest:
    room = max_context - len(prompt.ids)
    return GenerationRequest(
        prompt_ids=prompt.ids,
        max_tokens=min(request.max_tokens or room, room),
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        top_logprobs=request.top_logprobs,
    )


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _call_in(loop: asyncio.AbstractEventLoop, function: Any, *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function, *arguments)


def _set_result(future: "asyncio.Future[Generation]", result: Generation) -> None:
    if not future.done():
        future.set_result(result)


def _server_error(error: BaseException) -> RequestError:
    return RequestError(f"sampling failed: {error}", status=500)


async def _not_found(request: Request, _: Exception) -> Response:
    message = f"there is no {request.method} {request.url.path}; see /v1/chat/completions"
    return _json_response(build_error(RequestError(message, status=404)), status=404)


def _parse_json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise RequestError(f"the request body is not JSON: {error}") from error


def _json_response(value: Any, *, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
