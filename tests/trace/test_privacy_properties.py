"""What holds for every text and value."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starpo_trace.privacy.prefilter import make_skeleton
from starpo_trace.privacy.redaction import Redaction
from starpo_trace.privacy.redactor import Redactor
from starpo_trace.privacy.rules import PII, Rule

REDACTORS = {
    "default": Redactor(Redaction()),
    "everything": Redactor(
        Redaction(
            rules=[*PII, Rule(name="word", pattern=r"\bw\w+", pseudonym=True)],
            deny=["REDACTED", "deny me"],
            deny_fields=["ssn"],
            allow=["well", r"a\d+"],
            pseudonym_key=b"k" * 16,
        )
    ),
}
PIECES = st.sampled_from(
    [
        "AKIA" + "Q3EGRIZ7XSMM5T2B",
        "ghp_" + "a1B2c3D4e5" * 4,
        "sk-" + "a1B2c3D4e5" * 4,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcDEF123",
        "https://ann:pw12@example.com/",
        *('password="hunter2"', "api_key=a1b2c3d4e5", "DB_PASSWORD=", "token: ", "Cookie: a=bcdef"),
        *("Authorization: Bearer a1b2c3d4e5", "deny me", "well", "a12", "REDACTED", "who"),
        *("[REDACTED:jwt]", "[REDACTED:", "[email:0123456789ab]", "]", "\\n", '\\"', "\\u0041"),
        *(
            "4111 1111 1111 1111",
            "ann@example.com",
            "10.0.0.1",
            "ssn",
            "-----BEGIN PRIVATE KEY-----",
        ),
        *(" ", "\n", '"', "'", "=", ":", "{", "}", ",", "漢", "\ud800", "\x00", "é"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join)
NAMES = st.sampled_from(["password", "apiKey", "token", "ssn", "SSN", "x", "note"]) | TEXTS
LEAVES = TEXTS | st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
each_redactor = pytest.mark.parametrize("name", REDACTORS)


@each_redactor
@given(text=TEXTS)
@settings(deadline=None)
def test_texts_redacted_twice_are_as_redacted_once(name, text):
    """Masks do not trigger rules, nor do their surroundings."""
    redactor = REDACTORS[name]
    once = redactor.redact_text(text)
    assert redactor.redact_text(once) == once
    assert redactor.redact_text(text) == once
    assert "[REDACTED:error]" not in once


@each_redactor
@given(value=VALUES)
@settings(deadline=None)
def test_json_stays_json_and_agrees_with_values(name, value):
    """The text of a value and the value lose the same."""
    redactor = REDACTORS[name]
    text = json.dumps(value)
    redacted = redactor.redact_json(text)
    loaded = json.loads(redacted)
    assert redactor.redact_json(redacted) == redacted
    assert (redacted is text) == (redacted == text)
    if isinstance(value, dict | list) and '"' in text:
        expected = redactor.redact_value(json.loads(text))
        if "#2" not in json.dumps(expected):
            assert json.dumps(loaded) == json.dumps(expected)


@each_redactor
@given(value=VALUES)
@settings(deadline=None)
def test_values_are_never_changed_and_clean_ones_never_copied(name, value):
    """Redacted twice they are as redacted once."""
    redactor = REDACTORS[name]
    before = copy.deepcopy(value)
    redacted = redactor.redact_value(value)
    assert repr(value) == repr(before)
    assert redacted is value or repr(redacted) != repr(value)
    assert repr(redactor.redact_value(redacted)) == repr(redacted)


@each_redactor
@given(tokens=st.lists(PIECES | st.text(max_size=3), max_size=8))
@settings(deadline=None)
def test_tokens_left_unmarked_are_not_masked(name, tokens):
    """Unmarked tokens survive in the redacted text, in order."""
    redactor = REDACTORS[name]
    text = "".join(tokens)
    redacted = redactor.redact_value(text)
    marks = redactor.redact_tokens(tokens, text)
    assert len(marks) == len(tokens)
    assert any(marks) == (redacted is not text)
    position = 0
    for token, is_marked in zip(tokens, marks, strict=True):
        if not is_marked:
            position = redacted.index(token, position) + len(token)


@given(text=TEXTS, around=TEXTS)
@settings(max_examples=50, deadline=None)
def test_skeletons_hold_the_skeletons_of_their_parts(text, around):
    """Why a hint's skeleton must be in the text's."""
    assert make_skeleton(text) in make_skeleton(around + text + around)


@given(text=st.text(alphabet="abcdefghij ,.!?éß漢", max_size=200))
@settings(max_examples=50, deadline=None)
def test_prose_is_the_same_object(text):
    """Nothing to mask, nothing copied."""
    assert REDACTORS["default"].redact_text(text) is text
