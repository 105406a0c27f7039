"""Where the model is asked, and how: the same for all runs of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starpo_train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """`[evaluate.sampling]`: how answers are drawn. Part of what an evaluation is."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    """Of one answer."""
    stop: tuple[str, ...] = ()
    token_ids: bool = True
    """Ask for log-probabilities and token ids (vLLM, the built-in server): runs can be trained on."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More of the request's body, such as `top_k` for vLLM."""

    def __post_init__(self) -> None:
        """Refuse what no endpoint could use."""
        for key, value, low, high in (
            ("temperature", self.temperature, 0, 2),
            ("top_p", self.top_p, 0, 1),
            ("max_tokens", self.max_tokens, 1, 2**31),
        ):
            if not low <= value <= high:
                raise ConfigError(
                    f"evaluate.sampling.{key} = {value}: must be from {low} to {high}."
                )

    def build_request(self, *, seed: int) -> dict[str, Any]:
        """Keyword arguments of `chat.completions.create`; what asks for nothing is left out."""
        request: dict[str, Any] = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed % 2**31,
        }
        if self.top_p != 1:
            request["top_p"] = self.top_p
        if self.stop:
            request["stop"] = list(self.stop)
        return request | self.build_extras()

    def build_extras(self) -> dict[str, Any]:
        """The part that other packages' loops take as it is: log-probabilities, token ids, `extra`."""
        extras: dict[str, Any] = {}
        body = dict(self.extra)
        if self.token_ids:
            extras["logprobs"] = True
            body["return_token_ids"] = True
        return {**extras, "extra_body": body} if body else extras


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible API."""

    base_url: str
    """`.../v1`."""
    model: str
    """As the API calls it."""
    api_key: str = field(default="none", repr=False)
    max_retries: int = 0
    """Of requests that an overloaded server refused."""
    timeout_s: float = 600.0

    def connect(self) -> Any:
        """`openai.OpenAI`; may be used by several threads."""
        import openai

        return openai.OpenAI(
            base_url=self.base_url,
            api_key=self.api_key,
            max_retries=self.max_retries,
            timeout=self.timeout_s,
        )
