"""Member of a zip archive -> its bytes; also compressed by zstd, which Python's zipfile cannot yet."""

import io
import struct
import zipfile
import zlib
from typing import IO, Final

from starpo_trace.convert.sources.compression import open_zstd

_ZSTD: Final = 93
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_MAX_BYTES: Final = 1 << 30


class MemberError(ValueError):
    """A member cannot be read."""


def read_member(stream: IO[bytes], member: zipfile.ZipInfo) -> bytes:
    """Member of the archive in `stream` -> what it holds.

    Raises:
        MemberError: it is damaged, encrypted, of more than 1 GiB, or compressed some other way.
        OSError: it is nowhere in the file.
        SourceError: it needs a package that is not installed.
        zstandard.ZstdError, zlib.error, EOFError: its data is damaged.
    """
    if member.flag_bits & 1:
        raise MemberError("it is encrypted")
    data = _unpack(stream, member)
    if len(data) > _MAX_BYTES:
        raise MemberError(f"it has more than {_MAX_BYTES:,} bytes")
    if zlib.crc32(data) != member.CRC:
        raise MemberError("its checksum is wrong")
    return data


def _unpack(stream: IO[bytes], member: zipfile.ZipInfo) -> bytes:
    stream.seek(member.header_offset)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise MemberError("the archive ends before it")
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if magic != _LOCAL_MAGIC:
        raise MemberError("it is not where the archive says")
    stream.seek(name_length + extra_length, io.SEEK_CUR)
    packed = stream.read(member.compress_size)
    match member.compress_type:
        case zipfile.ZIP_STORED:
            return packed
        case zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _MAX_BYTES + 1)
        case method if method == _ZSTD:
            return open_zstd(io.BytesIO(packed), f"{stream.name}, {member.filename}").read(
                _MAX_BYTES + 1
            )
        case method:
            raise MemberError(f"it is compressed by method {method}, which is not read")
