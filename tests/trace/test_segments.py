"""Segment files: what is written is read, and damage stays where it is."""

import struct
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starpo_trace.store import segments
from starpo_trace.store.segments import (
    MAGIC,
    Damage,
    Record,
    SegmentWriter,
    frame_record,
    list_segments,
    read_segment,
)

PAYLOADS = [b"first", b"SPR1 is also in here SPR1", b"\0", b"x" * 1000]


def write_file(folder, data, name="1.otlp"):
    path = folder / name
    path.write_bytes(data)
    return path


def framed(payloads=PAYLOADS):
    return MAGIC + b"".join(frame_record(p, n) for n, p in enumerate(payloads))


def payloads_of(path):
    return [item.payload for item in read_segment(path) if isinstance(item, Record)]


def damages_of(path):
    return [item for item in read_segment(path) if isinstance(item, Damage)]


def test_the_layout_is_the_documented_one():
    """Marker, length, checksum, count, payload: worked out by hand."""
    assert frame_record(b"ab", 3) == (
        b"SPR1" + struct.pack("<I", 2) + struct.pack("<I", zlib.crc32(b"ab")) + b"\3\0\0\0ab"
    )


def test_records_come_back_in_order(tmp_path):
    """Also payloads that are empty or contain the marker."""
    path = write_file(tmp_path, framed())
    assert list(read_segment(path)) == [
        Record(payload=b"first", num_spans=0, offset=8),
        Record(payload=b"SPR1 is also in here SPR1", num_spans=1, offset=29),
        Record(payload=b"\0", num_spans=2, offset=70),
        Record(payload=b"x" * 1000, num_spans=3, offset=87),
    ]


@pytest.mark.parametrize("position", [29, 33, 37, 45, 60])
def test_a_flipped_byte_costs_one_record(tmp_path, position):
    """Wherever a bit flips in a record, its neighbours stay readable and the damage is exact."""
    data = bytearray(framed())
    data[position] ^= 0x10
    path = write_file(tmp_path, bytes(data))
    assert payloads_of(path) == [PAYLOADS[0], *PAYLOADS[2:]]
    assert damages_of(path) == [Damage(offset=29, length=41, reason="damaged_record")]


def test_a_torn_tail_is_named_in_an_open_segment(tmp_path):
    """Cut anywhere, an unsealed segment gives all whole records; a sealed one is damaged."""
    whole = framed()
    for length in range(len(whole)):
        path = write_file(tmp_path, whole[:length], "1.otlp.open")
        num_whole = sum(length >= end for end in (29, 70, 87, 1103))
        assert payloads_of(path) == PAYLOADS[:num_whole]
        is_clean = length in {0, 8, 29, 70, 87}
        assert [damage.reason for damage in damages_of(path)] == ([] if is_clean else ["torn_tail"])
    sealed = write_file(tmp_path, whole[:-1])
    assert [damage.reason for damage in damages_of(sealed)] == ["damaged_record"]


def test_a_marker_before_zeros_is_no_record(tmp_path):
    """What a power cut may leave of a record that speaks of this format."""
    path = write_file(tmp_path, MAGIC + b"SPR1" + b"\0" * 100 + frame_record(b"kept", 1))
    assert payloads_of(path) == [b"kept"]


def test_a_file_that_is_no_segment_is_damage(tmp_path):
    """Foreign bytes are reported, and records after them still found."""
    path = write_file(tmp_path, b"nonsense" + frame_record(b"kept", 1))
    assert payloads_of(path) == [b"kept"]
    assert damages_of(path) == [Damage(offset=0, length=8, reason="bad_magic")]
    assert damages_of(write_file(tmp_path, b"zzz")) == [
        Damage(offset=0, length=3, reason="bad_magic")
    ]


@given(st.binary(max_size=64), st.data())
def test_every_byte_is_a_record_or_damage(tmp_path_factory, noise, data):
    """Records and damage cover any damaged file exactly once, whatever happened to it."""
    whole = framed()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    content = whole[:start] + noise + whole[end:]
    path = write_file(tmp_path_factory.mktemp("s"), content)
    covered = len(MAGIC) if content.startswith(MAGIC) else 0
    for item in read_segment(path):
        assert item.offset == covered
        covered += item.length if isinstance(item, Damage) else 16 + len(item.payload)
    assert covered == len(content)


def test_damage_full_of_markers_costs_bounded_work(tmp_path, monkeypatch):
    """Each marker claims all that follows; what is looked through is bounded, what is left is told."""
    num_markers = 5000
    end = len(MAGIC) + 16 * num_markers
    offsets = range(len(MAGIC), end, 16)
    forged = b"".join(
        struct.pack("<4sIII", b"SPR1", max(1, end - offset - 16), 0, 1) for offset in offsets
    )
    whole = frame_record(b"whole", 1)
    path = write_file(tmp_path, MAGIC + whole + forged)
    num_bytes = 0

    def count(data):
        nonlocal num_bytes
        num_bytes += len(data)
        return zlib.crc32(data)

    monkeypatch.setattr(segments, "_MIN_SEARCH_BYTES", 0)
    monkeypatch.setattr(segments, "zlib", SimpleNamespace(crc32=count))
    assert payloads_of(path) == [b"whole"]
    [damage] = damages_of(path)
    assert (damage.offset, damage.length) == (len(MAGIC + whole), len(forged))
    assert num_bytes < 2 * 20 * path.stat().st_size < num_markers * len(forged) / 2  # read twice


def test_a_writer_seals_and_removes(tmp_path):
    """A sealed segment loses its suffix; one without records leaves nothing behind."""
    writer = SegmentWriter(tmp_path)
    assert writer.path.name.endswith(".otlp.open")
    writer.append(frame_record(b"a", 1))
    assert payloads_of(writer.path) == [b"a"]
    writer.seal()
    SegmentWriter(tmp_path).seal()
    assert list_segments(tmp_path) == [writer.path]
    assert writer.path.suffix == ".otlp"
