"""A shop's agent with another instrumentation beside Starpo; prints the spans that each gave.

python beside.py MODULE PEER WHAT [WHAT ...]

WHAT is done in its order: `peer`, `ours`, `-peer` and `-ours` switch on and off, `ask` asks.
`STARPO_STORE` says where ours go; with `SHARED=1` all go into one provider, the program's.
"""

import importlib
import json
import os
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import starpo_trace

QUESTION = "How many A7 and B8 are there?"
PEERS = {
    "openinference": {
        "openai": "openinference.instrumentation.openai:OpenAIInstrumentor",
        "shop_openai_agents": "openinference.instrumentation.openai_agents:OpenAIAgentsInstrumentor",
        "shop_langchain": "openinference.instrumentation.langchain:LangChainInstrumentor",
        "shop_agno": "openinference.instrumentation.agno:AgnoInstrumentor",
        "shop_smolagents": "openinference.instrumentation.smolagents:SmolagentsInstrumentor",
    },
    "openllmetry": {
        "openai": "opentelemetry.instrumentation.openai:OpenAIInstrumentor",
        "shop_openai_agents": "opentelemetry.instrumentation.openai_agents:OpenAIAgentsInstrumentor",
        "shop_langchain": "opentelemetry.instrumentation.langchain:LangchainInstrumentor",
        "shop_agno": "opentelemetry.instrumentation.agno:AgnoInstrumentor",
    },
}
"""Who -> what it instruments -> where."""


class Peer:
    """Another's instrumentations of a framework and of the OpenAI SDK."""

    def __init__(self, shop: str, names: str, provider: TracerProvider) -> None:
        self._provider = provider
        self._instrumentors: list[Any] = []
        self._shop = shop
        for name in names.split("+"):
            who, _, what = name.partition(":")
            for each in (shop, "openai"):
                if what in ("", "openai" if each == "openai" else "framework"):
                    module, _, found = PEERS[who].get(each, "").partition(":")
                    if module:
                        self._instrumentors.append(getattr(importlib.import_module(module), found)())

    def start(self) -> None:
        for each in self._instrumentors:
            each.instrument(tracer_provider=self._provider)

    def stop(self) -> None:
        for each in self._instrumentors:
            each.uninstrument()


class PydanticPeer:
    """Pydantic AI writes spans itself; OpenInference's processor rewrites them as they end."""

    def __init__(self, shop: str, names: str, provider: TracerProvider) -> None:
        self._names, self._provider = names, provider
        self._openai = Peer("", "openinference:openai", provider)

    def start(self) -> None:
        from pydantic_ai import Agent
        from pydantic_ai.models.instrumented import InstrumentationSettings

        self._openai.start()
        Agent.instrument_all(InstrumentationSettings(tracer_provider=self._provider))

    def stop(self) -> None:
        from pydantic_ai import Agent

        self._openai.stop()
        Agent.instrument_all(False)


def tell(span: Any) -> dict[str, Any]:
    return {
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "name": span.name,
        "kind": span.kind.name,
        "status": [span.status.status_code.name, span.status.description],
        "scope": span.instrumentation_scope.name,
        "attributes": {key: value for key, value in span.attributes.items()},
        "events": [[event.name, dict(event.attributes)] for event in span.events],
        "links": len(span.links),
    }


def main(shop: str, names: str, *steps: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    if os.environ.get("SHARED"):
        trace.set_tracer_provider(provider)
    peer = (PydanticPeer if shop == "shop_pydantic_ai" else Peer)(shop, names, provider)
    answers = []
    for step in steps:
        if step == "peer":
            peer.start()
        elif step == "-peer":
            peer.stop()
        elif step == "ours":
            starpo_trace.instrument()
        elif step == "-ours":
            starpo_trace.uninstrument()
        else:
            answers.append(importlib.import_module(shop).ask(QUESTION))
    starpo_trace.flush()
    spans = [tell(span) for span in exporter.get_finished_spans()]
    sys.stdout.write(json.dumps({"answers": answers, "spans": spans}, default=list))


if __name__ == "__main__":
    main(*sys.argv[1:])
