"""JSON over a limit -> JSON within it."""

import json
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starpo_trace.limits import is_cut, limit_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


def mark_of(text):
    digest = blake2b(text.encode(), digest_size=16).hexdigest()
    return f"[starpo:cut {len(text.encode())} bytes, blake2b {digest}]"


def test_the_longest_strings_go_first():
    """The short text stays; the mark says how many bytes of UTF-8 it stands for."""
    long, longer = "é" * 200, "b" * 500
    text = json.dumps([{"a": "short", "b": long}, longer], ensure_ascii=False)
    assert json.loads(limit_json(text, 600)) == [{"a": "short", "b": long}, mark_of(longer)]
    assert json.loads(limit_json(text, 300)) == [
        {"a": "short", "b": mark_of(long)},
        mark_of(longer),
    ]


def test_text_within_the_limit_is_the_same_object():
    """Whitespace, key order and repeated keys included."""
    text = '{"b": 1,  "a": [], "a": "é"}'
    assert limit_json(text, len(text.encode())) is text


@given(JSON, st.integers(80, 2000))
def test_the_result_is_json_within_the_limit(value, max_bytes):
    """Whatever the value, and it says when something was cut."""
    text = json.dumps(value)
    limited = limit_json(text, max_bytes)
    json.loads(limited)
    assert len(limited.encode("utf-8", "surrogatepass")) <= max_bytes
    assert limit_json(limited, max_bytes) is limited
    if json.loads(limited) != value:
        assert is_cut(limited)


def test_without_long_strings_whole_fields_go():
    """A grid of numbers gives way; the field beside it stays."""
    grid = list(range(1000))
    limited = json.loads(limit_json(json.dumps({"grid": grid, "row": 3}), 200))
    assert limited == {"grid": mark_of(json.dumps(grid, separators=(",", ":"))), "row": 3}


@pytest.mark.parametrize("text", ["plain " * 100, "[" * 5000 + "]" * 5000, '{"cut": "in the mi'])
def test_what_is_no_sane_json_is_replaced_whole(text):
    """Plain text, broken JSON and 5000 levels of nesting become one mark."""
    assert limit_json(text, 10) == mark_of(text)


def test_only_a_whole_mark_counts():
    """Text about marks is not taken for one."""
    assert is_cut(f'"{mark_of("x")}"')
    assert not is_cut("the prefix is [starpo:cut and no more")
