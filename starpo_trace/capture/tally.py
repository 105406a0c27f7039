"""What a run used and earned -> what is measured when it ends.

The agent's thread only puts one of the records below into a queue; what they come to is worked out
by `starpo_trace.capture.instruments`, in a thread of its own.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.outcome import EndKind, name_error

_REPEATED: Final = "fetch_response"
"""Operation whose answer may be fetched many times; its tokens were used once."""


@dataclass(slots=True, kw_only=True)  # not frozen, which is dearer to load and to make
class Judged:
    """A reward."""

    trajectory_id: str
    reward_id: str
    name: str
    value: float
    min: float | None
    max: float | None
    scope: str
    """step | turn | trajectory."""
    is_outcome: bool
    """Whether it judges the result."""
    is_late: bool
    """Whether the run had ended, or goes on in another process."""
    identity: Mapping[str, Any] | None
    """Of the run, where it is in progress here."""


@dataclass(slots=True, kw_only=True)  # not frozen, as above
class Ended:
    """A run that ended, or a part of it that will be resumed."""

    trajectory_id: str
    identity: Mapping[str, Any]
    end: EndKind
    duration_s: float
    num_steps: int
    num_tokens: tuple[int, int] | None
    """Input and output; None where a call did not say."""
    rewards: tuple[Judged, ...]


@dataclass(slots=True, kw_only=True)  # not frozen: made on every call
class Called:
    """A model call that ended."""

    operation: str
    provider: str
    model: str
    response_model: str | None
    address: str | None
    port: int | None
    error: str | None
    duration_s: float
    usage: tuple[int | None, int | None]
    """Input and output tokens."""


Measured = Judged | Ended | Called


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a run in progress used and earned so far."""

    started_s: float = field(default_factory=time.perf_counter)
    num_input: int = 0
    num_output: int = 0
    num_calls: int = 0
    is_complete: bool = True
    """Whether every call that was answered said what it used."""
    rewards: dict[str, Judged] = field(default_factory=dict)
    """Of the whole run, by id: one that is sent again replaces its value."""

    def add_call(self, call: Called, *, is_answered: bool) -> None:
        """Add what a model call used."""
        used, sampled = call.usage
        if used is None or sampled is None:
            self.is_complete = self.is_complete and not is_answered
            return
        self.num_calls += 1
        self.num_input += used
        self.num_output += sampled

    def read_tokens(self) -> tuple[int, int] | None:
        """Input and output tokens; None where they are not known, or nothing was asked."""
        if not self.is_complete or not self.num_calls:
            return None
        return self.num_input, self.num_output


def measure_call(
    request: LLMRequest,
    response: LLMResponse,
    wire: LLMResponse | None,
    error: BaseException | None,
    duration_s: float,
) -> Called:
    """A model call that ended -> what is measured of it."""
    usage = response.usage if wire is None else {**response.usage, **wire.usage}
    if request.operation == _REPEATED:
        usage = {}
    if request.started_ns is not None and response.ended_ns is not None:
        duration_s = (response.ended_ns - request.started_ns) / 1e9
    failure = None if error is None else name_error(error)
    return Called(
        operation=request.operation,
        provider=request.provider,
        model=request.model,
        response_model=(wire and wire.model) or response.model,
        address=request.address,
        port=request.port,
        error=failure or response.error_type or (wire and wire.error_type) or None,
        duration_s=duration_s,
        usage=(usage.get(semconv.USAGE_INPUT_TOKENS), usage.get(semconv.USAGE_OUTPUT_TOKENS)),
    )
