"""One way from span files to something, in a process of its own; prints what it took.

python -m convertlib.child WAY FOLDER
"""

import gc
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def build(folder: Path) -> dict[str, Any]:
    """Ours, everything included: read, hash, parse, tree, graph, rewards, write, account."""
    from starpo_trace.convert.dataset import build_dataset

    manifest = build_dataset([folder], folder.parent / f"dataset-{folder.name}")
    if not manifest.accounting.is_closed:
        raise SystemExit("the accounting does not close")
    return {"spans": manifest.accounting.spans_read, "rows": manifest.counts["turns"]}


def build_in_processes(folder: Path) -> dict[str, Any]:
    """Ours in two processes."""
    from starpo_trace.convert.dataset import build_dataset

    manifest = build_dataset(
        [folder], folder.parent / f"dataset-{folder.name}", executor="process", num_workers=2
    )
    return {"spans": manifest.accounting.spans_read, "rows": manifest.counts["turns"]}


def convert_plainly(folder: Path) -> dict[str, Any]:
    """What one writes in an afternoon: orjson, dictionaries by trace, a JSON line a trajectory."""
    import orjson

    runs: dict[str, list[dict[str, Any]]] = {}
    num_spans = 0
    for path in sorted(folder.iterdir()):
        for line in path.open("rb"):
            for span, attributes in _flatten_json(orjson.loads(line)):
                num_spans += 1
                for key in ("gen_ai.input.messages", "gen_ai.output.messages"):
                    if key in attributes:
                        attributes[key] = orjson.loads(attributes[key])
                trajectory = attributes.get("starpo.trajectory.id", span["traceId"])
                runs.setdefault(trajectory, []).append(
                    {"start": int(span["startTimeUnixNano"]), "attributes": attributes}
                )
    output = folder.parent / f"plain-{folder.name}.jsonl"
    with output.open("wb") as stream:
        for trajectory, spans in runs.items():
            spans.sort(key=lambda span: span["start"])
            turns = [s for s in spans if "gen_ai.output.messages" in s["attributes"]]
            row = {"trajectory_id": trajectory, "turns": turns, "spans": spans}
            stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return {"spans": num_spans, "rows": len(runs)}


def parse_orjson(folder: Path) -> dict[str, Any]:
    """Floor: orjson, attributes flattened, nothing kept."""
    import orjson

    num_spans = sum(
        1
        for path in sorted(folder.iterdir())
        for line in path.open("rb")
        for _ in _flatten_json(orjson.loads(line))
    )
    return {"spans": num_spans}


def parse_msgspec(folder: Path) -> dict[str, Any]:
    """Floor: msgspec's typed structs, attributes flattened, nothing kept."""
    import msgspec

    value = msgspec.defstruct(
        "Value",
        [
            (name, kind | None, None)
            for name, kind in {
                "stringValue": str,
                "intValue": int | str,
                "doubleValue": float,
                "boolValue": bool,
                "arrayValue": Any,
                "kvlistValue": Any,
            }.items()
        ],
    )
    pair = msgspec.defstruct("Pair", [("key", str), ("value", value)])
    span = msgspec.defstruct(
        "Span",
        [
            ("traceId", str),
            ("spanId", str),
            ("name", str),
            ("startTimeUnixNano", str),
            ("endTimeUnixNano", str),
            ("attributes", list[pair]),
            ("parentSpanId", str, ""),
        ],
    )
    scope = msgspec.defstruct("Scope", [("spans", list[span])])
    resource_spans = msgspec.defstruct("ResourceSpans", [("scopeSpans", list[scope])])
    request = msgspec.defstruct("Request", [("resourceSpans", list[resource_spans])])
    decoder = msgspec.json.Decoder(request)
    num_spans = 0
    for path in sorted(folder.iterdir()):
        for line in path.open("rb"):
            for group in decoder.decode(line).resourceSpans:
                for scoped in group.scopeSpans:
                    for each in scoped.spans:
                        attributes = {}
                        for entry in each.attributes:
                            found = entry.value
                            text = found.stringValue
                            attributes[entry.key] = (
                                text if text is not None else _first_value(found)
                            )
                        num_spans += 1
    return {"spans": num_spans}


def parse_protobuf(folder: Path) -> dict[str, Any]:
    """Floor: upb, attributes flattened, nothing kept."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    num_spans = 0
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            while prefix := stream.read(4):
                request = ExportTraceServiceRequest()
                request.ParseFromString(stream.read(int.from_bytes(prefix, "big")))
                for group in request.resource_spans:
                    for scoped in group.scope_spans:
                        for span in scoped.spans:
                            attributes = {}
                            for pair in span.attributes:
                                kind = pair.value.WhichOneof("value")
                                attributes[pair.key] = getattr(pair.value, kind)
                            num_spans += 1
    return {"spans": num_spans}


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours": build,
    "ours-processes": build_in_processes,
    "plain": convert_plainly,
    "orjson": parse_orjson,
    "msgspec": parse_msgspec,
    "upb": parse_protobuf,
}


def _flatten_json(document: dict[str, Any]) -> Any:
    for group in document["resourceSpans"]:
        for scoped in group["scopeSpans"]:
            for span in scoped["spans"]:
                attributes = {}
                for pair in span["attributes"]:
                    kind, value = next(iter(pair["value"].items()))
                    attributes[pair["key"]] = int(value) if kind == "intValue" else value
                yield span, attributes


def _first_value(value: Any) -> Any:
    if value.intValue is not None:
        return int(value.intValue)
    if value.doubleValue is not None:
        return value.doubleValue
    return value.arrayValue if value.arrayValue is not None else value.boolValue


def main() -> None:
    way, folder = WAYS[sys.argv[1]], Path(sys.argv[2])
    if sys.argv[1].startswith("ours"):
        # Imported, and warmed up on nothing: what is measured is the work.
        import starpo_trace.convert.dataset  # noqa: F401
    if "--anew" in sys.argv:
        shutil.rmtree(folder.parent / f"dataset-{folder.name}", ignore_errors=True)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gc.collect()
    started, wall = time.process_time(), time.perf_counter()
    told = way(folder)
    cpu_s = time.process_time() - started
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    told |= {
        "cpu_s": cpu_s + of_children.ru_utime + of_children.ru_stime,
        "wall_s": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before_mib,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
