"""Metrics -> an OTLP endpoint over HTTP, where the program has no MeterProvider of its own.

Everything is counted from the beginning of the process, so a request that fails loses nothing: the
next one says it again. An endpoint that takes no metrics (a tracing backend) is asked once.
"""

import math
import os
import uuid
from typing import Final

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from starpo_trace.guard import warn_once
from starpo_trace.store.transport import RecordingAdapter, load_credential_session

_INTERVAL_VARIABLE: Final = "OTEL_METRIC_EXPORT_INTERVAL"
_DEFAULT_INTERVAL_MS: Final = 60_000.0
_CREDENTIALS_VARIABLE: Final = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER"


class OtlpMetrics:
    """A provider of ours, and its export; `export` is called by one thread."""

    def __init__(self) -> None:
        session = load_credential_session(_CREDENTIALS_VARIABLE) or requests.Session()
        self._adapter = RecordingAdapter()
        for prefix in ("https://", "http://"):
            self._adapter.inner[prefix] = session.get_adapter(prefix)
            session.mount(prefix, self._adapter)
        # Of an endless interval it has no thread, which a forked child would start once more.
        self._reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(session=session), export_interval_millis=math.inf
        )
        # Each process by itself: two that count under one name would overwrite each other.
        resource = Resource.create().merge(Resource({"service.instance.id": str(uuid.uuid4())}))
        self.provider = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        self.interval_s = read_interval_s()
        self._is_refused = False

    def export(self, *, max_timeout_s: float | None = None) -> None:
        """Send what was counted so far."""
        if self._is_refused:
            return
        self._adapter.answer = None
        self._adapter.max_timeout_s = max_timeout_s
        with suppress_instrumentation():
            self._reader.collect()
        answer = self._adapter.answer
        if answer is None or answer.kind == "taken":
            return
        if answer.kind in {"refused", "too_large"}:
            self._is_refused = True
            warn_once(
                "metrics refused",
                "the OTLP endpoint takes no metrics (%s): none are sent. Traces are not affected; "
                "OTEL_METRICS_EXPORTER=none says the same without asking",
                answer.reason,
            )
            return
        warn_once(
            "metrics unreachable",
            "metrics cannot be exported now: %s. The next export says it all",
            answer.reason,
        )


def read_interval_s() -> float:
    """Seconds between exports."""
    text = os.environ.get(_INTERVAL_VARIABLE, "").strip()
    try:
        interval_ms = float(text) if text else _DEFAULT_INTERVAL_MS
    except ValueError:
        interval_ms = 0.0
    if not 0.0 < interval_ms < math.inf:
        warn_once(
            f"variable {_INTERVAL_VARIABLE}",
            "%s=%r in the environment: give milliseconds; until then it is a minute",
            _INTERVAL_VARIABLE,
            text,
        )
        interval_ms = _DEFAULT_INTERVAL_MS
    return interval_ms / 1000.0
