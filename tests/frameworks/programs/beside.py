"""A shop's agent with another instrumentation beside Starpo; writes what each gave.

python beside.py SHOP PEER FOLDER STEPS [STEPS ...]

SHOP is a module here, PEER names in `PEERS`. Each of STEPS is done in a process of its own, in its
order: `peer` and `ours` switch on, `-peer` and `-ours` off, `ask` asks. `peer,ours,ask+one` has one
tracer provider for all. Into FOLDER/STEPS go Starpo's store and the answers and spans as JSON.
"""

import importlib
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import starpo_trace

QUESTION = "How many A7 and B8 are there?"
OPENINFERENCE = "openinference.instrumentation"
OPENLLMETRY = "opentelemetry.instrumentation"
PEERS = {
    ("openinference", "openai"): f"{OPENINFERENCE}.openai:OpenAIInstrumentor",
    ("openinference", "shop_agno"): f"{OPENINFERENCE}.agno:AgnoInstrumentor",
    ("openinference", "shop_langchain"): f"{OPENINFERENCE}.langchain:LangChainInstrumentor",
    ("openinference", "shop_openai_agents"): (
        f"{OPENINFERENCE}.openai_agents:OpenAIAgentsInstrumentor"
    ),
    ("openinference", "shop_smolagents"): f"{OPENINFERENCE}.smolagents:SmolagentsInstrumentor",
    ("openllmetry", "openai"): f"{OPENLLMETRY}.openai:OpenAIInstrumentor",
    ("openllmetry", "shop_agno"): f"{OPENLLMETRY}.agno:AgnoInstrumentor",
    ("openllmetry", "shop_langchain"): f"{OPENLLMETRY}.langchain:LangchainInstrumentor",
    ("openllmetry", "shop_openai_agents"): f"{OPENLLMETRY}.openai_agents:OpenAIAgentsInstrumentor",
}
"""Whose instrumentation of what -> where it is."""


class PydanticAI:
    """Writes spans itself; OpenInference's processor puts its own attributes on them."""

    def instrument(self, *, tracer_provider: TracerProvider) -> None:
        from openinference.instrumentation.pydantic_ai import OpenInferenceSpanProcessor
        from pydantic_ai import Agent
        from pydantic_ai.models.instrumented import InstrumentationSettings

        # It must see a span before the exporter does.
        processors = tracer_provider._active_span_processor
        processors._span_processors = (OpenInferenceSpanProcessor(), *processors._span_processors)
        Agent.instrument_all(InstrumentationSettings(tracer_provider=tracer_provider))

    def uninstrument(self) -> None:
        from pydantic_ai import Agent

        Agent.instrument_all(instrument=False)


def find_instrumentors(shop: str, peer: str) -> list[Any]:
    """What a peer has for a shop's framework, and for the SDK below it."""
    found: list[Any] = []
    for what in (shop, "openai"):
        if (peer, what) == ("openinference", "shop_pydantic_ai"):
            found.append(PydanticAI())
        elif (peer, what) in PEERS:
            module, _, name = PEERS[peer, what].partition(":")
            found.append(getattr(importlib.import_module(module), name)())
    return found


def tell(span: Any) -> dict[str, Any]:
    return {
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "name": span.name,
        "kind": span.kind.name,
        "status": [span.status.status_code.name, span.status.description],
        "scope": span.instrumentation_scope.name,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "attributes": dict(span.attributes),
        "events": [[event.name, event.timestamp, dict(event.attributes)] for event in span.events],
    }


def act(module: Any, instrumentors: list[Any], steps: str, folder: Path) -> None:
    steps, _, shared = steps.partition("+")
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    if shared:
        trace.set_tracer_provider(provider)
    answers = []
    for step in steps.split(","):
        if step == "ours":
            starpo_trace.instrument(store=None if shared else folder / "traces")
        elif step == "-ours":
            starpo_trace.uninstrument()
        elif step == "peer":
            for each in instrumentors:
                each.instrument(tracer_provider=provider)
        elif step == "-peer":
            for each in reversed(instrumentors):
                each.uninstrument()
        else:
            answers.append(module.ask(QUESTION))
    starpo_trace.flush()
    spans = [tell(span) for span in exporter.get_finished_spans()]
    told = {"answers": answers, "spans": spans}
    (folder / "told.json").write_text(json.dumps(told, default=list))


def main(shop: str, peer: str, folder: str, *orders: str) -> None:
    module = importlib.import_module(shop)
    if shop == "shop_openai_agents":
        sys.modules["agents"].set_trace_processors([])  # its own sends to OpenAI
    instrumentors = find_instrumentors(shop, peer)
    for order in orders:
        own = Path(folder) / order
        own.mkdir()
        pid = os.fork()
        if not pid:
            logging.basicConfig(filename=own / "log", format="%(name)s %(message)s")
            try:
                act(module, instrumentors, order, own)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{order} failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
