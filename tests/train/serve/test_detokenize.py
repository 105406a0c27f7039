"""Token ids -> text, token by token."""

from typing import Any

import pytest

from starpo_train.serve.detokenize import TextBuilder


class Bytes:
    """One token per byte."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")


def build(text: str, *stop: str) -> tuple[list[str], bool]:
    """What each byte's token adds (empty ones left out), the rest at the end; stopped?"""
    builder = TextBuilder(Bytes(), stop)
    parts = []
    for token_id in text.encode():
        parts.append(builder.push(token_id))
        if builder.stopped:
            break
    parts.append(builder.finish())
    return [part for part in parts if part], builder.stopped


def test_a_character_of_three_bytes_comes_out_whole():
    """Nothing is shown while its bytes are incomplete."""
    assert build("a€b") == (["a", "€", "b"], False)


def test_bytes_that_never_become_a_character_come_out_at_the_end():
    """A sampled answer may end within a character."""
    builder = TextBuilder(Bytes())
    assert [builder.push(0xE2), builder.push(0x82), builder.finish()] == ["", "", "\ufffd"]


def test_text_ends_before_a_stop_string():
    """The stop string is no part of the text, and neither is its beginning."""
    assert build("go END on", " END") == (["g", "o"], True)


def test_what_only_looked_like_a_stop_string_comes_out():
    """It is held back until it is sure."""
    assert build("go Egg", " END") == (["g", "o", " Eg", "g"], False)


def test_the_first_of_several_stop_strings_counts():
    """Whichever is complete first in the text."""
    assert build("abcd", "cd", "b") == (["a"], True)


@pytest.mark.parametrize("text", ["", "plain", "é€😀 mixed"])
def test_held_tokens_decode_to_the_same_text(text: str):
    """Without a reader nothing is decoded before the end."""
    builder = TextBuilder(Bytes())
    for token_id in text.encode():
        builder.hold(token_id)
    assert text == builder.finish()
