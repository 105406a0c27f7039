"""Chat messages -> one answer of an OpenAI-compatible endpoint, or what kind of failure it was.

One request, no retries: who waits, and for how long, is decided in `patience.py`.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from opentelemetry.instrumentation.utils import suppress_instrumentation

from starpo_train.errors import ConfigError, JudgeError

_PASSING: Final = frozenset({408, 409, 425, 429})
_FATAL: Final = frozenset({401, 403, 404, 405})
_UNSTRUCTURED: Final = frozenset({400, 415, 422, 501})
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the judge is asked, and how."""

    model: str
    """As the endpoint calls it."""
    base_url: str | None = None
    """None: OpenAI's own, or OPENAI_BASE_URL."""
    api_key_env: str = "OPENAI_API_KEY"
    """Variable that holds the key; endpoints without one need none."""
    temperature: float = 0.0
    max_output_tokens: int = 512
    seed: int | None = None
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105
    """What the endpoint calls the limit."""
    timeout_s: float = 120.0
    structured: bool = True
    """Ask for the schema; an endpoint that refuses it is asked without, its answer parsed strictly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    text: str | None
    answer_format: str
    """json_schema | text."""
    model: str | None
    fingerprint: str | None
    finish_reason: str | None
    refusal: str | None
    input_tokens: int | None
    output_tokens: int | None


class PassingFailureError(Exception):
    """Worth another try: rate limits, outages, broken connections, timeouts."""

    def __init__(
        self, reason: str, *, wait_s: float | None = None, is_billed: bool = False
    ) -> None:
        """`wait_s`: as Retry-After said; `is_billed`: it may have been answered all the same."""
        super().__init__(reason)
        self.wait_s = wait_s
        self.is_billed = is_billed


class RefusedError(Exception):
    """The endpoint takes this request never, such as one that is too long."""


class Client:
    """Connections to one endpoint; may be used by several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        import openai

        self._endpoint = endpoint
        self._is_structured = endpoint.structured
        try:
            self._openai = openai.OpenAI(
                base_url=endpoint.base_url,
                api_key=os.environ.get(endpoint.api_key_env) or "none",
                max_retries=0,
                timeout=endpoint.timeout_s,
            )
        except openai.OpenAIError as error:
            raise ConfigError(f"judge.base_url = {endpoint.base_url!r}: {error}.") from None

    def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, Any]) -> Answer:
        """One request; a second one without the schema where the endpoint does not know it.

        Raises:
            PassingFailureError: try again later.
            RefusedError: not this request.
            JudgeError: no request at all: a wrong key, address or model.
        """
        was_structured = self._is_structured
        try:
            return self._request(messages, schema if was_structured else None)
        except _UnstructuredError:
            self._is_structured = False
            return self._request(messages, None)

    def close(self) -> None:
        """Close the connections."""
        self._openai.close()

    def _request(self, messages: Sequence[dict[str, str]], schema: dict[str, Any] | None) -> Answer:
        import openai

        try:
            with suppress_instrumentation():  # the judge's calls are no part of an agent's run
                found = self._openai.chat.completions.create(**self._write(messages, schema))
        except openai.APITimeoutError as error:
            raise PassingFailureError("timed out", is_billed=True) from error
        except openai.APIConnectionError as error:
            reason = f"no connection ({error.__cause__ or error})"
            raise PassingFailureError(reason) from error
        except openai.APIStatusError as error:
            raise self._sort(error, is_structured=schema is not None) from error
        except (openai.OpenAIError, ValueError) as error:  # a body that is no JSON
            raise PassingFailureError(f"no answer ({error})", is_billed=True) from error
        return _read_answer(found, "text" if schema is None else "json_schema")

    def _write(
        self, messages: Sequence[dict[str, str]], schema: dict[str, Any] | None
    ) -> dict[str, Any]:
        endpoint = self._endpoint
        request: dict[str, Any] = {
            "model": endpoint.model,
            "messages": list(messages),
            "temperature": endpoint.temperature,
            endpoint.token_limit: endpoint.max_output_tokens,
        }
        if endpoint.seed is not None:
            request["seed"] = endpoint.seed
        if schema is not None:
            named = {"name": "judgement", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        return request

    def _sort(self, error: Any, *, is_structured: bool) -> Exception:
        status, said = error.status_code, _read_message(error)[:_SHOWN]
        told = said.lower()
        is_about_it = any(word in told for word in ("response_format", "schema", "guided"))
        if is_structured and status in _UNSTRUCTURED and is_about_it:
            return _UnstructuredError()
        if status in _PASSING or status >= 500:
            wait_s = read_retry_after(error.response.headers)
            if status == 429 and "insufficient_quota" in told:
                return JudgeError(f"the judge's account has no quota left: {said}")
            return PassingFailureError(f"HTTP {status}: {said}", wait_s=wait_s)
        if status in _FATAL:
            return JudgeError(
                f"judge {self._endpoint.model!r} at {self._openai.base_url}: HTTP {status}: {said}; "
                f"check judge.base_url, judge.model and the key in {self._endpoint.api_key_env}."
            )
        return RefusedError(f"HTTP {status}: {said}")


class _UnstructuredError(Exception):
    """The endpoint does not know `response_format`."""


def read_retry_after(headers: Any, *, now_s: float | None = None) -> float | None:
    """Headers -> seconds to wait; None where they do not say, or not so that it can be read.

    >>> read_retry_after({"retry-after": "7"})
    7.0
    """
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        until_s = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
    return max(0.0, until_s - (time.time() if now_s is None else now_s))


def _read_message(error: Any) -> str:
    """What the endpoint said, in its own words where it has any."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return said if isinstance(said, str) and said else str(error.message)


def _read_answer(found: Any, answer_format: str) -> Answer:
    choices = getattr(found, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise PassingFailureError("an answer without a message", is_billed=True)
    message, usage = choices[0].message, getattr(found, "usage", None)
    return Answer(
        text=message.content,
        answer_format=answer_format,
        model=getattr(found, "model", None),
        fingerprint=getattr(found, "system_fingerprint", None),
        finish_reason=choices[0].finish_reason,
        refusal=getattr(message, "refusal", None),
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
    )
