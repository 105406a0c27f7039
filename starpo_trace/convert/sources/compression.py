"""Files compressed by gzip or zstd -> their bytes, up to where they are damaged."""

import gzip
import io
import zlib
from codecs import BOM_UTF8
from pathlib import Path
from typing import IO, Any, Final, cast

from starpo_trace.convert.otlp import DecodeError
from starpo_trace.convert.sources.files import open_source
from starpo_trace.errors import SourceError

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_MESSAGE_BYTES: Final = 1 << 30
_PIECE_BYTES: Final = 1 << 16
_ZSTD_PIECE_BYTES: Final = 1 << 10
"""What a piece becomes is in memory at once, and lost where the piece is damaged."""


def list_faults() -> tuple[type[Exception], ...]:
    """What reading compressed data may raise."""
    faults: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    try:
        from zstandard import ZstdError
    except ImportError:
        return faults
    return (*faults, ZstdError)


def open_spans(path: Path) -> IO[bytes]:
    """File -> stream of what it holds, decompressed.

    Raises:
        SourceError: it cannot be read, or needs a package that is not installed.
    """
    stream = open_source(path)
    head = stream.peek(4)[:4]
    if head.startswith(_GZIP_MAGIC):
        stream.close()
        return cast("IO[bytes]", gzip.open(stream.name))
    if head == ZSTD_MAGIC:
        return io.BufferedReader(_ZstdStream(stream, _make_decompressor(path)))
    return stream


def open_text(path: Path) -> IO[bytes]:
    """File -> stream of the text it holds, behind its byte order mark if it has one.

    Raises:
        SourceError: it cannot be read, or needs a package that is not installed.
    """
    stream = open_spans(path)
    if cast("io.BufferedReader", stream).peek(len(BOM_UTF8)).startswith(BOM_UTF8):
        stream.read(len(BOM_UTF8))
    return stream


def open_zstd(stream: IO[bytes], name: Path | str) -> IO[bytes]:
    """Stream of zstd data, and what to call it -> stream of what it holds.

    Raises:
        SourceError: it needs a package that is not installed.
    """
    return io.BufferedReader(_ZstdStream(stream, _make_decompressor(name)))


class _ZstdStream(io.RawIOBase):
    """Frames of zstd, one after the other; unlike the package's reader it tells where one is cut."""

    def __init__(self, stream: IO[bytes], decompressor: Any) -> None:
        self._stream = stream
        self._decompressor = decompressor
        self._frame: Any = None
        self._left = memoryview(b"")
        self._fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            if self._fault is not None:
                raise self._fault
            piece = self._stream.read(_ZSTD_PIECE_BYTES)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._left = memoryview(self._decompress(piece))
        length = min(len(buffer), len(self._left))
        buffer[:length] = self._left[:length]
        self._left = self._left[length:]
        return length

    def _decompress(self, piece: bytes) -> bytes:
        """What a piece holds up to where it is damaged; that is raised when the rest was read."""
        data = b""
        try:
            while piece:
                if self._frame is None:
                    self._frame = self._decompressor.decompressobj()
                data += self._frame.decompress(piece)
                piece = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
        except list_faults() as error:
            self._fault = error
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


def _make_decompressor(path: Path | str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise SourceError(
            f"{path}: zstd data, for which the package zstandard is missing; "
            "pip install 'starpo[dataset]'"
        ) from None
    return zstandard.ZstdDecompressor()


def read_to_fault(stream: IO[bytes]) -> tuple[bytes, Exception | None]:
    """All of a stream, or all up to where compressed data is damaged, and how."""
    pieces: list[bytes] = []
    try:
        # `read1` hands over what it has before it raises.
        while piece := cast("io.BufferedReader", stream).read1(_PIECE_BYTES):
            pieces.append(piece)
    except list_faults() as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def decompress_message(path: Path, payload: bytes) -> bytes:
    """One message compressed by zstd -> its bytes.

    Raises:
        DecodeError: it is damaged, or of more than 1 GiB.
        SourceError: it needs a package that is not installed.
    """
    stream = _ZstdStream(io.BytesIO(payload), _make_decompressor(path))
    try:
        data = io.BufferedReader(stream).read(_MAX_MESSAGE_BYTES + 1)
    except list_faults() as error:
        raise DecodeError(f"zstd data is damaged or cut: {error}") from error
    if len(data) > _MAX_MESSAGE_BYTES:
        raise DecodeError(f"a message of more than {_MAX_MESSAGE_BYTES:,} bytes")
    return data
