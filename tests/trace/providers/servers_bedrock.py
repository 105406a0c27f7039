"""Bedrock's API, scripted: JSON answers and binary event streams."""

import binascii
import json
import struct
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from servers_scripted import Answer

REQUEST_ID = "req-1"


def answer_json(
    value: Any,
    *,
    status: int = 200,
    error: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Answer with one JSON value; `error` names the exception that botocore makes of it."""
    more = {"x-amzn-errortype": error} if error else {}
    return Answer(
        chunks=[json.dumps(value).encode()],
        status=status,
        headers={"x-amzn-requestid": REQUEST_ID, **more, **(headers or {})},
    )


def answer_events(
    events: Sequence[bytes], *, is_cut: bool = False, stall_after: int | None = None
) -> Answer:
    """Answer with an event stream."""
    return Answer(
        chunks=events,
        content_type="application/vnd.amazon.eventstream",
        headers={"x-amzn-requestid": REQUEST_ID},
        is_cut=is_cut,
        stall_after=stall_after,
    )


def encode_events(*events: dict[str, Any]) -> list[bytes]:
    """Events, each `{type: fields}` -> messages of an event stream."""
    return [
        encode_message({":message-type": "event", ":event-type": kind}, fields)
        for event in events
        for kind, fields in event.items()
    ]


def encode_chunks(*chunks: dict[str, Any]) -> list[bytes]:
    """A model's own events -> messages of an InvokeModel stream."""
    return encode_events(
        *({"chunk": {"bytes": b64encode(json.dumps(chunk).encode()).decode()}} for chunk in chunks)
    )


def encode_error(kind: str, message: str) -> bytes:
    """An exception that the server reports in a stream."""
    return encode_message(
        {":message-type": "exception", ":exception-type": kind}, {"message": message}
    )


def encode_message(headers: dict[str, str], payload: Any) -> bytes:
    """One message of an event stream (application/vnd.amazon.eventstream)."""
    head = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value
        for name, value in (
            (name, text.encode())
            for name, text in {":content-type": "application/json", **headers}.items()
        )
    )
    body = json.dumps(payload).encode()
    prelude = struct.pack("!II", 16 + len(head) + len(body), len(head))
    prelude += struct.pack("!I", binascii.crc32(prelude))
    message = prelude + head + body
    return message + struct.pack("!I", binascii.crc32(message))
