"""Record LLM agent runs as OpenTelemetry trajectories.

    import starpo_trace
    starpo_trace.instrument()

From there on every chat completion through the OpenAI SDK is a span. `trajectory` groups the calls
of one run, `step`, `state` and `observe` add what happens between them, and `reward` says what the
run was worth, at once or days later. Nothing here breaks or stalls the agent: what telemetry gets
wrong is logged once and otherwise ignored.

Importing this package loads nothing else; each name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starpo_trace.capture.episode import Trajectory, current_trajectory
    from starpo_trace.capture.rewards import reward
    from starpo_trace.capture.runtime import flush, stats
    from starpo_trace.capture.scopes import trajectory
    from starpo_trace.capture.steps import Step, observe, state, step
    from starpo_trace.capture.switch import instrument, uninstrument
    from starpo_trace.privacy.redaction import Redaction
    from starpo_trace.privacy.rules import Rule

_HOMES = {
    "Redaction": "starpo_trace.privacy.redaction",
    "Rule": "starpo_trace.privacy.rules",
    "Step": "starpo_trace.capture.steps",
    "Trajectory": "starpo_trace.capture.episode",
    "current_trajectory": "starpo_trace.capture.episode",
    "flush": "starpo_trace.capture.runtime",
    "instrument": "starpo_trace.capture.switch",
    "observe": "starpo_trace.capture.steps",
    "reward": "starpo_trace.capture.rewards",
    "state": "starpo_trace.capture.steps",
    "stats": "starpo_trace.capture.runtime",
    "step": "starpo_trace.capture.steps",
    "trajectory": "starpo_trace.capture.scopes",
    "uninstrument": "starpo_trace.capture.switch",
}

__all__ = [
    "Redaction",
    "Rule",
    "Step",
    "Trajectory",
    "current_trajectory",
    "flush",
    "instrument",
    "observe",
    "reward",
    "state",
    "stats",
    "step",
    "trajectory",
    "uninstrument",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
