"""Ended runs, rewards and model calls -> OpenTelemetry instruments, with few values per attribute.

Names, units, attributes and buckets are a contract: docs/live.md lists them, and the dashboard and
the alerts in `starpo_trace/grafana` ask for them. What grows without bound (tasks, conversations,
trajectories) is no attribute, and of each attribute only the first values are told apart.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from starpo_trace import semconv
from starpo_trace.capture.tally import Called, Ended, Judged, Measured
from starpo_trace.guard import warn_once

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter, MeterProvider

MAX_VALUES: Final = 64
"""Values of one attribute that are told apart; the others are `OTHER`."""
OTHER: Final = "other"
_MAX_REMEMBERED: Final = 4096
_RUN_KEYS: Final = (
    semconv.POLICY_ID,
    semconv.ENVIRONMENT_NAME,
    semconv.COHORT,
    semconv.AGENT_NAME,
)

REWARD_BUCKETS: Final = (0.0, *(tenths / 10 for tenths in range(1, 11)), 2.0, 5.0, 10.0, 100.0)
STEP_BUCKETS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 75, 100, 200, 500)
DURATION_BUCKETS: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)
TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
"""Of the conventions, for `gen_ai.client.token.usage`."""
CALL_DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
"""Of the conventions, for `gen_ai.client.operation.duration`."""


class Instruments:
    """Where measurements go; used by one thread."""

    def __init__(
        self,
        provider: "MeterProvider",
        *,
        version: str,
        fail_below: float,
        redact: Callable[[str], str],
    ) -> None:
        self._provider = provider
        self._meter = provider.get_meter(semconv.SCOPE_NAME, version)
        self._fail_below = fail_below
        self._values = _Values(redact)
        self._ended: OrderedDict[str, dict[str, str]] = OrderedDict()
        """Attributes of the runs that ended last, for the rewards that come later."""
        self._judged: OrderedDict[str, None] = OrderedDict()
        self._calls: tuple[Histogram | None, Histogram | None] | None = None
        meter = self._meter
        self._count = meter.create_counter(
            "starpo.trajectory.count", unit="{trajectory}", description="Runs that ended."
        )
        self._reward = _histogram(
            meter, "starpo.trajectory.reward", "{score}", "Outcome rewards.", REWARD_BUCKETS
        )
        self._duration = _histogram(
            meter, "starpo.trajectory.duration", "s", "Time from begin to end.", DURATION_BUCKETS
        )
        self._steps = _histogram(
            meter, "starpo.trajectory.steps", "{step}", "Steps of a run.", STEP_BUCKETS
        )
        self._tokens = _histogram(
            meter, "starpo.trajectory.tokens", "{token}", "Tokens of a run.", TOKEN_BUCKETS
        )
        self._evaluations = meter.create_counter(
            "starpo.evaluation.count", unit="{evaluation}", description="Rewards given."
        )
        self._fails = meter.create_counter(
            "starpo.evaluation.fails",
            unit="{evaluation}",
            description="Rewards below the threshold.",
        )

    def record(self, measured: Measured) -> None:
        """Record one thing that was measured."""
        if isinstance(measured, Called):
            self._record_call(measured)
        elif isinstance(measured, Judged):
            self._record_reward(measured, self._find_labels(measured))
        else:
            self._record_end(measured)

    def _record_end(self, ended: Ended) -> None:
        labels = self._values.label(ended.identity, _RUN_KEYS)
        _remember(self._ended, ended.trajectory_id, labels)
        self._count.add(1, {**labels, semconv.TRAJECTORY_END: ended.end})
        self._duration.record(ended.duration_s, labels)
        self._steps.record(ended.num_steps, labels)
        if ended.num_tokens is not None:
            for kind, number in zip(("input", "output"), ended.num_tokens, strict=True):
                self._tokens.record(number, {**labels, semconv.TOKEN_TYPE: kind})
        for reward in ended.rewards:
            self._record_reward(reward, labels)

    def _find_labels(self, judged: Judged) -> dict[str, str]:
        if judged.identity is not None:
            return self._values.label(judged.identity, _RUN_KEYS)
        return self._ended.get(judged.trajectory_id, {})

    def _record_reward(self, judged: Judged, run_labels: Mapping[str, str]) -> None:
        """Count a reward once; what is out of its own range counts for nothing, as in datasets."""
        lowest, highest, value = judged.min, judged.max, judged.value
        is_outside = (lowest is not None and value < lowest) or (
            highest is not None and value > highest
        )
        if is_outside or judged.reward_id in self._judged:
            return
        _remember(self._judged, judged.reward_id, None)
        if lowest is not None and highest is not None and highest > lowest:
            value = (value - lowest) / (highest - lowest)
        labels = {
            **run_labels,
            semconv.EVALUATION_NAME: self._values.cap(semconv.EVALUATION_NAME, judged.name),
            semconv.REWARD_TIMING: "late" if judged.is_late else "in_run",
        }
        scoped = {**labels, semconv.REWARD_SCOPE: judged.scope}
        self._evaluations.add(1, scoped)
        self._fails.add(int(value < self._fail_below), scoped)  # 0 too: the series is there then
        if judged.scope != "trajectory" or not judged.is_outcome:
            return
        if value < 0:  # no histogram of OpenTelemetry's takes it
            warn_once(
                f"negative reward {labels[semconv.EVALUATION_NAME]}",
                "the reward %r is negative and has no range: it is recorded and counted, but is not "
                "in the metric starpo.trajectory.reward; give reward(min=..., max=...)",
                labels[semconv.EVALUATION_NAME],
            )
            return
        self._reward.record(value, labels)

    def _record_call(self, called: Called) -> None:
        usage, duration = self._calls or self._create_call_instruments()
        if usage is None and duration is None:
            return
        told = {
            semconv.REQUEST_MODEL: called.model or None,
            semconv.RESPONSE_MODEL: called.response_model,
            semconv.SERVER_ADDRESS: called.address,
        }
        labels: dict[str, str | int] = {
            semconv.OPERATION_NAME: called.operation,
            semconv.PROVIDER_NAME: called.provider,
            **self._values.label(told, tuple(told)),
        }
        if called.address is not None and called.port is not None:
            port = self._values.cap(semconv.SERVER_PORT, str(called.port))
            if port != OTHER:
                labels[semconv.SERVER_PORT] = called.port
        if usage is not None:
            for kind, number in zip(("input", "output"), called.usage, strict=True):
                if number is not None:
                    usage.record(number, {**labels, semconv.TOKEN_TYPE: kind})
        if duration is not None:
            if called.error is not None:
                labels[semconv.ERROR_TYPE] = self._values.cap(semconv.ERROR_TYPE, called.error)
            duration.record(called.duration_s, labels)

    def _create_call_instruments(self) -> "tuple[Histogram | None, Histogram | None]":
        """At the first call: what another instrumentation measures is left to it."""
        taken = list_instruments(self._provider, except_scope=semconv.SCOPE_NAME)
        usage, duration = "gen_ai.client.token.usage", "gen_ai.client.operation.duration"
        self._calls = (
            None
            if usage in taken
            else _histogram(
                self._meter,
                usage,
                "{token}",
                "Number of input and output tokens used.",
                TOKEN_BUCKETS,
            ),
            None
            if duration in taken
            else _histogram(
                self._meter, duration, "s", "GenAI operation duration.", CALL_DURATION_BUCKETS
            ),
        )
        return self._calls


class _Values:
    """Values of attributes -> the ones that are told apart, without secrets."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._shown: dict[str, dict[str, str]] = {}

    def label(self, values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
        """The attributes among the keys that have a value."""
        return {key: self.cap(key, str(values[key])) for key in keys if values.get(key) is not None}

    def cap(self, key: str, value: str) -> str:
        """The value, or `other` where the attribute has had too many."""
        shown = self._shown.setdefault(key, {})
        found = shown.get(value)
        if found is not None:
            return found
        if len(shown) < MAX_VALUES:
            return shown.setdefault(value, self._redact(value))
        warn_once(
            f"metric attribute {key}",
            "the metrics' attribute %s has had %d values; further ones are %r there. An attribute "
            "shall have few: no ids of tasks, users or conversations",
            key,
            MAX_VALUES,
            OTHER,
        )
        return OTHER


def list_instruments(provider: "MeterProvider", *, except_scope: str) -> set[str]:
    """Names of the instruments that others have made in a provider of the SDK's."""
    meters: Mapping[Any, Any] = getattr(provider, "_meters", None) or {}
    return {
        instrument.name
        for scope, meter in list(meters.items())
        if getattr(scope, "name", None) != except_scope
        for instrument in list(getattr(meter, "_instrument_id_instrument", {}).values())
    }


def _histogram(
    meter: "Meter", name: str, unit: str, description: str, buckets: Sequence[float]
) -> "Histogram":
    return meter.create_histogram(
        name, unit=unit, description=description, explicit_bucket_boundaries_advisory=buckets
    )


def _remember(memory: "OrderedDict[str, Any]", key: str, value: Any) -> None:
    memory[key] = value
    while len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)
