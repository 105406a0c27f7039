"""`opentelemetry-instrument app.py` -> `instrument()`, by entry point.

`OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=starpo` leaves it out.
"""

from collections.abc import Collection
from inspect import signature
from typing import Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from starpo_trace.capture.switch import instrument, uninstrument
from starpo_trace.guard import warn

_SETTINGS: Final = frozenset(signature(instrument).parameters)


class StarpoInstrumentor(BaseInstrumentor):
    """Starpo, as OpenTelemetry's tools switch an instrumentation on and off."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: each provider's SDK is patched when the program imports it."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        settings = {name: value for name, value in kwargs.items() if name in _SETTINGS}
        try:
            instrument(**settings)
        except Exception as error:  # noqa: BLE001 (raised, it would stop the other instrumentors)
            warn("nothing is recorded: %s", error)

    def _uninstrument(self, **kwargs: Any) -> None:
        uninstrument()
