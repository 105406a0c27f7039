"""Small bodies that ask for much memory or time."""

import gzip
import random
import zlib
from collections.abc import Callable
from typing import Any

from fuzz_inputs import wrap

from starpo_trace.collect.decode import JSON, PROTOBUF


def pack_zeros(packer: Any, num_mib: int = 1024) -> bytes:
    """So many MiB of zeros, compressed."""
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(num_mib)) + packer.flush()


def gzip_zeros() -> bytes:
    """A gigabyte in a megabyte."""
    return pack_zeros(zlib.compressobj(9, wbits=31))


def flood_request(piece: bytes, num_mib: int, *tags: int) -> bytes:
    """One piece over and over, inside messages with these tags."""
    data = piece * ((num_mib << 20) // len(piece))
    for tag in tags:
        data = wrap(tag, data)
    return data


def flood_json(num_mib: int) -> bytes:
    """Empty lists over and over."""
    return b'{"a":[' + b"[]," * ((num_mib << 20) // 3) + b"[]]}"


NOISE = wrap(0x7A, random.Random(0).randbytes(200_000))
"""A field that OTLP does not know; with it, a bomb stays below the ratio limit."""
BOMBS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "gzip_of_1_gib_of_zeros": (gzip_zeros, "gzip", PROTOBUF),
    "gzip_of_1_gib_of_zeros_as_json": (gzip_zeros, "gzip", JSON),
    "deflate_of_1_gib_of_zeros": (
        lambda: pack_zeros(zlib.compressobj(9)),
        "deflate",
        PROTOBUF,
    ),
    "gzip_of_1024_members": (lambda: gzip.compress(bytes(1 << 20)) * 1024, "gzip", PROTOBUF),
    "gzip_in_gzip": (lambda: gzip.compress(gzip_zeros()), "gzip", PROTOBUF),
    "gzip_of_30_million_spans": (
        lambda: gzip.compress(flood_request(b"\x12\x00", 60, 0x12, 0x0A)),
        "gzip",
        PROTOBUF,
    ),
    "gzip_of_30_million_resources": (
        lambda: gzip.compress(flood_request(b"\x0a\x00", 60)),
        "gzip",
        PROTOBUF,
    ),
    "gzip_of_30_million_spans_and_noise": (
        lambda: gzip.compress(flood_request(b"\x12\x00", 60, 0x12, 0x0A) + NOISE),
        "gzip",
        PROTOBUF,
    ),
    "gzip_of_30_million_resources_and_noise": (
        lambda: gzip.compress(flood_request(b"\x0a\x00", 60) + NOISE),
        "gzip",
        PROTOBUF,
    ),
    "gzip_of_7_million_attributes_in_each_of_4_spans": (
        lambda: gzip.compress(floods_in_span(flood_request(b"\x4a\x00", 15)) * 4 + NOISE),
        "gzip",
        PROTOBUF,
    ),
    "gzip_of_a_resource_of_30_million_attributes": (
        lambda: gzip.compress(flood_request(b"\x0a\x00", 60, 0x0A, 0x0A) + NOISE),
        "gzip",
        PROTOBUF,
    ),
    "gzip_of_20_million_json_lists_and_noise": (
        lambda: gzip.compress(flood_json(60) + NOISE),
        "gzip",
        JSON,
    ),
    "gzip_of_2_million_json_lists_and_noise": (
        lambda: gzip.compress(flood_json(6) + NOISE),
        "gzip",
        JSON,
    ),
    "7_million_spans": (
        lambda: flood_request(b"\x12\x00", 15, 0x12, 0x0A),
        "identity",
        PROTOBUF,
    ),
    "7_million_resources": (lambda: flood_request(b"\x0a\x00", 15), "identity", PROTOBUF),
    "7_million_attributes_of_a_span": (
        lambda: floods_in_span(flood_request(b"\x4a\x00", 15)),
        "identity",
        PROTOBUF,
    ),
    "7_million_events_of_a_span": (
        lambda: floods_in_span(flood_request(b"\x5a\x00", 15)),
        "identity",
        PROTOBUF,
    ),
    "3_million_items_of_a_list": (
        lambda: floods_in_span(nested_items(3 << 20)),
        "identity",
        PROTOBUF,
    ),
    "5_million_json_lists": (lambda: flood_json(15), "identity", JSON),
    "gzip_of_20_million_json_lists": (lambda: gzip.compress(flood_json(60)), "gzip", JSON),
    "json_15_million_deep": (lambda: b"[" * (15 << 20), "identity", JSON),
}
"""Bodies that ask for much memory or time: how to build one, its encoding, its content type."""


def floods_in_span(content: bytes) -> bytes:
    """Fields of a span -> a request with that span."""
    data = b"\x0a\x10" + b"\x01" * 16 + b"\x12\x08" + b"\x02" * 8 + content
    for tag in (0x12, 0x12, 0x0A):
        data = wrap(tag, data)
    return data


def nested_items(count: int) -> bytes:
    """One attribute with a list of so many empty values."""
    value = wrap(0x2A, b"\x0a\x00" * count)
    return wrap(0x4A, b"\x0a\x01a" + wrap(0x12, value))
