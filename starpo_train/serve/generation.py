"""What the engine is asked for, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to sample."""

    prompt_ids: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """None: fresh randomness."""
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    """How many of the likeliest tokens to report at each position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """One token of an answer."""

    token_id: int
    logprob: float
    """Log-softmax of the raw logits: temperature 1, whatever the request's."""
    top: list[tuple[int, float]]
    """(token id, logprob) of the likeliest tokens, likeliest first."""
    text: str
    """What this token adds to the answer's text; may be empty while a character is incomplete."""


@dataclass(slots=True, kw_only=True)
class Generation:
    """A request on its way, and what came of it; `cancel` frees its slot."""

    request: GenerationRequest
    on_token: Callable[[SampledToken], None] | None
    """Called in the engine's thread for each token."""
    on_done: Callable[["Generation"], None]
    """Called once in the engine's thread."""
    tokens: list[SampledToken] = field(default_factory=list)
    tail: str = ""
    """Text that came out only at the end."""
    finish_reason: Literal["stop", "length", "cancelled", "error"] | None = None
    error: BaseException | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop sampling; the row leaves the batch before the next step."""
        self.cancelled = True

    @property
    def text(self) -> str:
        """The answer's text."""
        return "".join(token.text for token in self.tokens) + self.tail
