"""Outcome of a request -> OTLP response bodies."""

from typing import Any

import orjson
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from starpo_trace.collect.decode import JSON, Decoded
from starpo_trace.collect.refusals import RefusedError
from starpo_trace.collect.signals import Signal

NO_METRICS = "this receiver stores traces and logs; send metrics to an OpenTelemetry collector"


def encode_response(decoded: Decoded, signal: Signal) -> bytes:
    """What was stored -> response message."""
    response = signal.response()
    if decoded.num_rejected:
        setattr(response.partial_success, signal.rejected[0], decoded.num_rejected)
        response.partial_success.error_message = decoded.message
    return response.SerializeToString()


def encode_response_json(decoded: Decoded, signal: Signal) -> bytes:
    """What was stored -> response message as OTLP JSON."""
    partial: dict[str, Any] = {}
    if decoded.num_rejected:
        partial = {signal.rejected[1]: str(decoded.num_rejected), "errorMessage": decoded.message}
    return orjson.dumps({"partialSuccess": partial})


def build_status(refusal: RefusedError) -> status_pb2.Status:
    """Refusal -> `google.rpc.Status`, with `RetryInfo` when it should be sent again."""
    status = status_pb2.Status(code=refusal.grpc_code, message=str(refusal))
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration(seconds=refusal.retry_after_s)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def encode_refusal(refusal: RefusedError, content_type: str) -> bytes:
    """Refusal -> `google.rpc.Status` in the format of the request."""
    if content_type == JSON:
        return orjson.dumps({"code": refusal.grpc_code, "message": str(refusal)})
    return build_status(refusal).SerializeToString()
