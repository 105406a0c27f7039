"""OTLP/gRPC from a process of its own, for children of a process that has loaded gRPC.

gRPC's threads do not survive a fork, their locks do, and a child that opens a channel may hang for
ever, all of it. So such a child starts a small helper that never forked, `python -m` this module,
and hands it encoded requests over a pipe:

    payload bytes: u32 | timeout in seconds: f64 (0: the configured one) | payload

It answers each with the length of a JSON object, as u32, and the object: the fields of `Answer`.
"""

import dataclasses
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_TIMEOUT,
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
)
from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace.store.transport import MAX_REQUEST_BYTES, Answer

_REQUEST: Final = struct.Struct("<Id")
_ANSWER: Final = struct.Struct("<I")
_START_S: Final = 30.0
_GRACE_S: Final = 2.0


class GrpcProcessTransport:
    """The side of the process that records."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, batch: Sequence[ReadableSpan], *, max_timeout_s: float | None) -> Answer:
        """Send a batch once; returns within the timeout and the time that a helper takes."""
        try:
            payload = encode_spans(batch).SerializeToString()
        except (ValueError, TypeError) as error:
            return Answer(kind="not_sent", reason=str(error))
        if len(payload) > MAX_REQUEST_BYTES:
            return Answer(kind="too_large", reason="more than 4 MiB")
        allowed_s = _read_timeout() + _START_S if max_timeout_s is None else max_timeout_s
        deadline_s = time.monotonic() + allowed_s + _GRACE_S
        try:
            process = self._process = self._process or _start_helper()
            assert process.stdin is not None  # noqa: S101 (both are pipes)
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(_REQUEST.pack(len(payload), max_timeout_s or 0.0) + payload)
            process.stdin.flush()
            length = _ANSWER.unpack(_read_exactly(process.stdout, _ANSWER.size, deadline_s))[0]
            return Answer(**json.loads(_read_exactly(process.stdout, length, deadline_s)))
        except (OSError, ValueError, EOFError) as error:
            self._kill()
            return Answer(kind="later", reason=f"gRPC helper: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Let the helper end."""
        self._kill()  # it has answered, or is given up

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was buffered cannot be written any more
                        pipe.close()
            process.wait()


def _start_helper() -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each or "." for each in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "starpo_trace.store.grpc_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is the agent's
    )


def _read_exactly(pipe: IO[bytes], length: int, deadline_s: float) -> bytes:
    data = b""
    while len(data) < length:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            raise TimeoutError("no answer in time")
        piece = os.read(pipe.fileno(), length - len(data))
        if not piece:
            raise EOFError("it has ended")
        data += piece
    return data


def _read_timeout() -> float:
    text = (
        os.environ.get(OTEL_EXPORTER_OTLP_TRACES_TIMEOUT)
        or os.environ.get(OTEL_EXPORTER_OTLP_TIMEOUT)
        or "10"
    )
    try:
        return float(text)
    except ValueError:
        return 10.0


def main() -> None:
    """Be the helper: requests from standard input, until it ends."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from starpo_trace.store.grpc_transport import GrpcTransport

    transport = GrpcTransport()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    with suppress(BrokenPipeError):  # nobody waits for the answer any more
        while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
            length, timeout_s = _REQUEST.unpack(header)
            request = ExportTraceServiceRequest.FromString(requests.read(length))
            answer = transport.send_request(request, max_timeout_s=timeout_s or None)
            data = json.dumps(dataclasses.asdict(answer)).encode()
            answers.write(_ANSWER.pack(len(data)) + data)
            answers.flush()
    os._exit(0)  # gRPC may take its time to end, and there is nothing left to do


if __name__ == "__main__":
    main()
