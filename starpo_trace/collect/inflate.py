"""Compressed body -> body, never inflated beyond the limits."""

import zlib
from typing import Any, Final

from starpo_trace.collect.limits import Limits
from starpo_trace.collect.refusals import Reason, RefusedError

ENCODINGS: Final = ("identity", "gzip", "deflate")
_PIECE_BYTES: Final = 1 << 20
_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW_DEFLATE: Final = -zlib.MAX_WBITS


def check_encoding(encoding: str) -> str:
    """Value of `Content-Encoding` -> one of `ENCODINGS`.

    Raises:
        RefusedError: it is another one, or several.
    """
    name = encoding.strip().lower() or "identity"
    if name not in ENCODINGS:
        raise RefusedError(
            Reason.UNSUPPORTED,
            f"Content-Encoding {encoding[:40]!r}: send gzip, deflate or no compression",
        )
    return name


def sniff_encoding(message: bytes) -> str:
    """First bytes of a gRPC message -> its encoding.

    gRPC hides the name of the compression from the application. An OTLP request begins with a
    line feed (field 1), so gzip's and zlib's first bytes cannot be mistaken for one.
    """
    if message.startswith(b"\x1f\x8b"):
        return "gzip"
    return "deflate" if _is_zlib(message) else "identity"


def inflate_body(body: bytes, encoding: str, limits: Limits) -> bytes:
    """Body as sent -> its bytes.

    Raises:
        RefusedError: it is larger than allowed, or not what `encoding` says.
    """
    if encoding == "identity":
        if len(body) > limits.max_body_bytes:
            raise _too_large(f"the body has more than {limits.max_body_bytes:,} bytes")
        return body
    pieces: list[bytes] = []
    num_bytes = 0
    left = body
    while left:  # gzip allows several members one after another
        stream = zlib.decompressobj(_window_bits(left, encoding))
        while not stream.eof:
            piece = _inflate_piece(stream, left, encoding)
            left = stream.unconsumed_tail
            num_bytes += len(piece)
            _check_size(num_bytes, len(body), limits)
            pieces.append(piece)
            if not piece and not left and not stream.eof:
                raise RefusedError(Reason.MALFORMED, f"the {encoding} body is cut off")
        left = stream.unused_data
        if encoding != "gzip" and left:
            raise RefusedError(Reason.MALFORMED, f"{len(left):,} bytes follow the {encoding} data")
    return b"".join(pieces)


def _inflate_piece(stream: Any, data: bytes, encoding: str) -> bytes:
    try:
        return stream.decompress(data, _PIECE_BYTES)
    except zlib.error as error:
        raise RefusedError(Reason.MALFORMED, f"the body is not {encoding}: {error}") from None


def _check_size(num_bytes: int, num_sent: int, limits: Limits) -> None:
    if num_bytes > limits.max_decompressed_bytes:
        raise _too_large(f"the body inflates beyond {limits.max_decompressed_bytes:,} bytes")
    if num_bytes > limits.ratio_from_bytes and num_bytes > limits.max_ratio * num_sent:
        raise _too_large(f"the body inflates more than {limits.max_ratio} times")


def _too_large(message: str) -> RefusedError:
    return RefusedError(Reason.TOO_LARGE, f"{message}; send fewer spans in a request")


def _window_bits(body: bytes, encoding: str) -> int:
    if encoding == "gzip":
        return _GZIP
    # `deflate` means zlib, but some clients leave its header out.
    return _ZLIB if _is_zlib(body) else _RAW_DEFLATE


def _is_zlib(data: bytes) -> bool:
    return (
        len(data) > 1
        and data[0] & 0x0F == 8
        and data[0] >> 4 <= 7
        and (int.from_bytes(data[:2], "big") % 31 == 0)
    )
