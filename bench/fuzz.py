"""Malformed OTLP bodies -> what the receiver's decoder makes of them.

    python bench/fuzz.py [--quick] [--inputs N] [--seed N] [--json FILE]

Each input goes through `decode_body`, the function that both servers of `starpo-trace collect`
call. It may return or raise `RefusedError`; anything else is a crash. What it accepts is read back
by the dataset builder's decoder, and must give the spans that were sent. Inputs are seeded:
input i of a seed is the same on every machine.
"""

import argparse
import json
import multiprocessing
import random
import resource
import time
from collections import Counter
from faulthandler import cancel_dump_traceback_later, dump_traceback_later
from pathlib import Path
from typing import Any

import orjson
from figures import exit_by_targets, name_machine, write_json
from fuzz_bombs import BOMBS
from fuzz_inputs import Maker, set_value, to_json
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace.collect.decode import JSON, PROTOBUF, Decoded, decode_body
from starpo_trace.collect.inflate import inflate_body
from starpo_trace.collect.limits import DEFAULT_LIMITS
from starpo_trace.collect.refusals import RefusedError
from starpo_trace.collect.signals import LOGS
from starpo_trace.convert.otlp import (
    DecodeError,
    MalformedSpan,
    SpanRow,
    decode_protobuf,
)
from starpo_trace.convert.otlpjson import decode_json
from starpo_trace.convert.otlplogs import decode_any_protobuf

NUM_INPUTS = 1_000_000
NUM_QUICK_INPUTS = 100_000
NUM_PROCESSES = 2
MAX_INPUT_S = 1.0
"""CPU time after which an input counts as a hang."""
STUCK_S = 60
"""Wall time after which a worker that is stuck inside one block of inputs is killed."""
BLOCK = 1000
MAX_GROWTH_MIB = 256
MAX_BOMB_S = 1.0
MAX_BOMB_MIB = 1024


def check_accepted(decoded: Decoded, body: bytes, content_type: str) -> str | None:
    """What is wrong with an accepted input; None when nothing is."""
    if not decoded.num_records:
        return None if not decoded.payload else "payload without spans"
    try:
        rows = list(decode_protobuf(decoded.payload, "fuzz"))
        sent = read_spans(body, content_type)
    except Exception as error:  # noqa: BLE001  (any is what this looks for)
        return f"unreadable: {error!r}"
    if len(rows) != decoded.num_records or not all(isinstance(row, SpanRow) for row in rows):
        return f"not {decoded.num_records} good spans: {rows}"
    return None if sent is None else compare_spans(rows, sent, decoded.num_rejected)


def compare_spans(rows: list[Any], sent: list[Any], num_rejected: int) -> str | None:
    """What is wrong with the stored spans, given those that were sent."""
    if len(rows) + num_rejected != len(sent):
        return f"{len(rows)} + {num_rejected} spans of {len(sent)}"
    following = iter(sent)  # what is kept comes in the order in which it was sent
    lost = next((row for row in rows if not any(is_same(row, other) for other in following)), None)
    return f"not as it was sent: {lost}" if lost else None


def read_spans(body: bytes, content_type: str) -> list[SpanRow | MalformedSpan] | None:
    """Spans of the input as the dataset builder reads them; None when it cannot as a whole."""
    try:
        if content_type == JSON:
            return list(decode_json(body, "fuzz"))
        return list(decode_protobuf(body, "fuzz"))
    except DecodeError:
        return None


def is_same(row: Any, other: Any) -> bool:
    """Whether a stored span is the one that was sent."""
    ids = str(other.trace_id).lower(), str(other.span_id).lower()
    if (row.trace_id, row.span_id) != ids:
        return False
    if not isinstance(other, SpanRow):  # of JSON it reads some fields more strictly
        return True
    return (row.start_ns, row.end_ns, set(row.attributes)) == (
        other.start_ns,
        other.end_ns,
        set(other.attributes),
    )


def try_as_logs(body: bytes, encoding: str, content_type: str, counts: Counter[str]) -> str | None:
    """The same bytes sent as log records: refused, or all read back."""
    try:
        decoded = decode_body(body, encoding, content_type, DEFAULT_LIMITS, LOGS)
    except RefusedError:
        return None
    except BaseException as error:  # noqa: BLE001  (as above)
        counts["crashes"] += 1
        return f"as logs: {error!r}"
    counts["log_records_accepted"] += decoded.num_records
    num_read = (
        sum(1 for _ in decode_any_protobuf(decoded.payload, "fuzz")) if decoded.payload else 0
    )
    counts["unreadable"] += num_read != decoded.num_records
    return f"as logs: {num_read} read back" if num_read != decoded.num_records else None


def measure_rss_mib() -> float:
    """Largest memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(seed: int, num_inputs: int, queue: Any) -> None:
    """One worker: its inputs, and a report of what happened."""
    maker = Maker(seed)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    examples: list[str] = []
    slowest_s = 0.0
    base_mib = 0.0
    for number in range(num_inputs):
        if number % BLOCK == 0:
            dump_traceback_later(STUCK_S, exit=True)
            if number <= 5 * BLOCK:
                base_mib = measure_rss_mib()
        kind, body, encoding, content_type = maker.make()
        kinds[kind.partition("_")[0]] += 1
        counts["bytes"] += len(body)
        started_s = time.process_time()
        problem = None
        try:
            decoded = decode_body(body, encoding, content_type, DEFAULT_LIMITS)
        except RefusedError as refusal:
            counts[f"refused_{refusal.reason.value}"] += 1
        except BaseException as error:  # noqa: BLE001  (also what is no Exception is a crash)
            counts["crashes"] += 1
            problem = repr(error)
        else:
            counts["accepted" if not decoded.num_rejected else "partial"] += 1
            counts["spans_accepted"] += decoded.num_records
            problem = check_accepted(
                decoded, inflate_body(body, encoding, DEFAULT_LIMITS), content_type
            )
            counts["unreadable"] += problem is not None
        problem = problem or try_as_logs(body, encoding, content_type, counts)
        taken_s = time.process_time() - started_s
        slowest_s = max(slowest_s, taken_s)
        counts["hangs"] += taken_s > MAX_INPUT_S
        if problem is not None and len(examples) < 5:
            examples.append(f"seed {seed} input {number} {kind}: {problem}"[:300])
    cancel_dump_traceback_later()
    growth_mib = measure_rss_mib() - base_mib
    queue.put((counts, kinds, examples, slowest_s, growth_mib, measure_rss_mib()))


def explode(name: str, queue: Any) -> None:
    """One bomb in a process of its own: was it refused, how fast, how much memory."""
    build, encoding, content_type = BOMBS[name]
    body = build()
    before_mib = measure_rss_mib()
    started_s = time.process_time()
    try:
        decode_body(body, encoding, content_type, DEFAULT_LIMITS)
        outcome = "accepted"
    except RefusedError as refusal:
        outcome = refusal.reason.value
    taken_s = time.process_time() - started_s
    queue.put((outcome, taken_s, max(0.0, measure_rss_mib() - before_mib)))


def measure_speed() -> dict[str, int]:
    """Spans a second of CPU time, best of five, in requests of 512 spans of 1.8 kB."""
    chance = random.Random(1)
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(512):
        span = scope.spans.add(trace_id=chance.randbytes(16), span_id=chance.randbytes(8))
        span.start_time_unix_nano = 10**18 + number
        for index in range(10):
            set_value(span.attributes.add(key=f"gen_ai.key.{index}").value, "x" * 150)
    speeds = {}
    for name, body, kind in (
        ("protobuf", request.SerializeToString(), PROTOBUF),
        ("json", orjson.dumps(to_json(request)), JSON),
    ):
        best_s = min(time_once(body, kind) for _ in range(5))
        speeds[name] = round(512 / best_s)
    return speeds


def time_once(body: bytes, kind: str) -> float:
    """CPU seconds of one decode, the mean of five."""
    started_s = time.process_time()
    for _ in range(5):
        decode_body(body, "identity", kind, DEFAULT_LIMITS)
    return (time.process_time() - started_s) / 5


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{NUM_QUICK_INPUTS:,} inputs")
    parser.add_argument("--inputs", type=int, default=NUM_INPUTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_inputs = NUM_QUICK_INPUTS if options.quick else options.inputs
    speeds = measure_speed()
    bombs = run_bombs()
    for name, bomb in bombs.items():
        print(f"{name:34} {bomb}", flush=True)
    totals = run_fuzz(options.seed, num_inputs)
    figures = {**totals, "spans_per_cpu_s": speeds, "bombs": bombs}
    targets = build_targets(
        num_inputs, NUM_QUICK_INPUTS if options.quick else NUM_INPUTS, totals, bombs
    )
    print(json.dumps(figures, indent=2))
    for target in targets:
        print(
            f"{target['name']:34} {target['value']!s:>10} target {target['target']} {target['met']}"
        )
    result = {"bench": "fuzz", "machine": name_machine(), "figures": figures, "targets": targets}
    write_json(options.json, result)
    exit_by_targets(targets)


def run_bombs() -> dict[str, dict[str, Any]]:
    """Each bomb in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = {}
    for name in BOMBS:
        queue = context.Queue()
        process = context.Process(target=explode, args=(name, queue))
        process.start()
        outcome, taken_s, grown_mib = queue.get(timeout=120)
        process.join()
        results[name] = {
            "answer": outcome,
            "cpu_s": round(taken_s, 3),
            "memory_mib": round(grown_mib),
        }
    return results


def run_fuzz(seed: int, num_inputs: int) -> dict[str, Any]:
    """All workers -> totals; a worker that died counts as a crash."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    share = num_inputs // NUM_PROCESSES
    workers = [
        context.Process(target=fuzz, args=(seed * NUM_PROCESSES + number, share, queue))
        for number in range(NUM_PROCESSES)
    ]
    started_s = time.monotonic()
    for worker in workers:
        worker.start()
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    examples: list[str] = []
    slowest_s = growth_mib = peak_mib = 0.0
    for worker in workers:
        while worker.is_alive() and queue.empty():
            time.sleep(0.2)
        if queue.empty() and worker.exitcode != 0:
            counts["died"] += 1
            continue
        got = queue.get(timeout=STUCK_S)
        counts += got[0]
        kinds += got[1]
        examples += got[2]
        slowest_s, growth_mib = max(slowest_s, got[3]), max(growth_mib, got[4])
        peak_mib = max(peak_mib, got[5])
    for worker in workers:
        worker.join()
    return {
        "inputs": share * NUM_PROCESSES,
        "inputs_by_format": dict(kinds),
        **{name: counts[name] for name in ("died", "crashes", "hangs", "unreadable")},
        **dict(sorted(counts.items())),
        "examples": examples,
        "slowest_input_cpu_s": round(slowest_s, 4),
        "memory_growth_mib": round(growth_mib, 1),
        "memory_peak_mib": round(peak_mib, 1),
        "wall_s": round(time.monotonic() - started_s),
    }


def build_targets(
    num_inputs: int, wanted: int, totals: dict[str, Any], bombs: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Totals -> figures with their targets."""
    slowest_s = max(bomb["cpu_s"] for bomb in bombs.values())
    largest_mib = max(bomb["memory_mib"] for bomb in bombs.values())
    growth_mib = totals["memory_growth_mib"]
    num_dead = totals["died"] + totals["crashes"]
    num_refused = sum(bomb["answer"] != "accepted" for bomb in bombs.values())
    rows = [
        ("inputs", num_inputs, f">= {wanted}", num_inputs >= wanted and not totals["died"]),
        ("crashes", num_dead, "== 0", num_dead == 0),
        ("hangs", totals["hangs"], "== 0", totals["hangs"] == 0),
        ("accepted_but_unreadable", totals["unreadable"], "== 0", totals["unreadable"] == 0),
        ("memory_growth_mib", growth_mib, f"<= {MAX_GROWTH_MIB}", growth_mib <= MAX_GROWTH_MIB),
        ("bombs_refused", num_refused, f"== {len(bombs)}", num_refused == len(bombs)),
        ("slowest_bomb_cpu_s", slowest_s, f"<= {MAX_BOMB_S}", slowest_s <= MAX_BOMB_S),
        ("bomb_memory_mib", largest_mib, f"<= {MAX_BOMB_MIB}", largest_mib <= MAX_BOMB_MIB),
    ]
    return [
        {"name": name, "value": value, "target": target, "met": met}
        for name, value, target, met in rows
    ]


if __name__ == "__main__":
    main()
