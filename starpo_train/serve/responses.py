"""Answers -> OpenAI chat-completions JSON, with vLLM's extra fields.

`return_token_ids` adds `prompt_token_ids` (top level; first chunk of a stream) and
`choices[].token_ids` (per chunk in a stream). `logprobs` adds `choices[].logprobs.content`, of the
raw logits at temperature 1 as vLLM's default is.
"""

import time
import uuid
from typing import Any

from starpo_train.serve.requests import ChatRequest, RequestError
from starpo_train.serve.toolparse import Answer, Piece, ToolCall


def build_error(error: RequestError) -> dict[str, Any]:
    """Error -> OpenAI error JSON."""
    kind = {404: "not_found_error", 500: "server_error", 503: "server_error"}.get(
        error.status, "invalid_request_error"
    )
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


def build_logprobs(tokens: list[tuple[str, float, list[tuple[str, float]]]]) -> dict[str, Any]:
    """(token text, logprob, likeliest) of each token -> `logprobs` of a choice."""
    return {
        "content": [
            {
                **_logprob_entry(text, logprob),
                "top_logprobs": [_logprob_entry(*entry) for entry in top],
            }
            for text, logprob, top in tokens
        ]
    }


def _logprob_entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def build_usage(num_prompt: int, num_answer: int) -> dict[str, int]:
    """Token counts -> `usage`."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
    }


class ResponseBuilder:
    """Builds the response, or the chunks, to one request."""

    def __init__(self, request: ChatRequest, prompt_ids: list[int]) -> None:
        self._request = request
        self._prompt_ids = prompt_ids
        self._id = uuid.uuid4().hex
        self._num_calls = 0
        self._first = True

    def build_response(
        self,
        answer: Answer,
        *,
        token_ids: list[int],
        logprobs: dict[str, Any] | None,
        finish_reason: str,
    ) -> dict[str, Any]:
        """A whole answer -> `chat.completion`."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.reasoning is not None:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [self._tool_call(call) for call in answer.tool_calls]
            finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        choice = {
            "index": 0,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        response = {
            **self._envelope("chat.completion"),
            "choices": [choice],
            "usage": build_usage(len(self._prompt_ids), len(token_ids)),
        }
        if self._request.return_token_ids:
            choice["token_ids"] = token_ids
            response["prompt_token_ids"] = self._prompt_ids
        return response

    def build_chunk(
        self,
        pieces: list[Piece],
        *,
        token_ids: list[int],
        logprobs: dict[str, Any] | None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """What came out since the last chunk -> `chat.completion.chunk`."""
        delta: dict[str, Any] = {}
        if self._first:
            delta = {"role": "assistant", "content": ""}
        for key, kind in (("reasoning_content", "reasoning"), ("content", "content")):
            text = "".join(piece.text for piece in pieces if piece.kind == kind)
            if text:
                delta[key] = text
        calls = [piece.call for piece in pieces if piece.call is not None]
        if calls:
            delta["tool_calls"] = [
                {"index": self._num_calls + offset, **self._tool_call(call)}
                for offset, call in enumerate(calls)
            ]
            self._num_calls += len(calls)
        if finish_reason == "stop" and self._num_calls:
            finish_reason = "tool_calls"
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        if self._request.return_token_ids:
            choice["token_ids"] = token_ids
            if self._first:
                chunk["prompt_token_ids"] = self._prompt_ids
        self._first = False
        return chunk

    def build_usage_chunk(self, num_answer: int) -> dict[str, Any]:
        """The chunk behind the last one when usage was asked for."""
        usage = build_usage(len(self._prompt_ids), num_answer)
        return {**self._envelope("chat.completion.chunk"), "choices": [], "usage": usage}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._id}",
            "object": kind,
            "created": int(time.time()),
            "model": self._request.model,
        }

    def _tool_call(self, call: ToolCall) -> dict[str, Any]:
        return {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
