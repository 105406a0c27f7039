"""JSON text -> edits inside it, everything else verbatim.

A tool call's arguments are the policy's action, so the text is not parsed and written anew:
spacing, number forms and the order and repetition of keys stay. Its strings are looked at one by
one, decoded; only those that hold something are replaced.
"""

import json
import re
from collections.abc import Callable
from typing import Final

import orjson

from starpo_trace.privacy.matching import Edit, apply_edits

_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|-?[0-9][0-9.eE+-]*+')
_COLON: Final = re.compile(r"[ \t\r\n]*+:[ \t\r\n]*+")
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"')
_DECODER: Final = json.JSONDecoder()

FindEdits = Callable[[str], list[Edit]]
MaskField = Callable[[str, str | None], str | None]
"""Field name, its value if that is a string -> rule that masks the whole value, or None."""


def is_json(text: str) -> bool:
    """Whether a text is JSON as Python reads it (NaN and integers of any size included).

    Raises:
        RecursionError: it is nested too deeply to say.
    """
    try:
        orjson.loads(text)
    except ValueError:
        try:
            json.loads(text)
        except ValueError:
            return False
    return True


def find_json_edits(
    text: str,
    *,
    find_string_edits: FindEdits,
    find_number_edits: FindEdits | None,
    mask_field: MaskField,
    make_mask: Callable[[str], str],
) -> list[Edit]:
    """Valid JSON text -> edits that leave it valid."""
    edits: list[Edit] = []
    position = 0
    while (token := _TOKEN.search(text, position)) is not None:
        position = token.end()
        if text[token.start()] != '"':
            if find_number_edits and (found := find_number_edits(token[0])):
                edits.append(_quote(*token.span(), apply_edits(token[0], found), found))
            continue
        content = _decode(token[0])
        edits += _edit_literal(token.start(), token[0], content, find_string_edits)
        colon = _COLON.match(text, position)
        if colon is None:
            continue
        literal = _STRING.match(text, colon.end())
        value = _decode(literal[0]) if literal else None
        name = mask_field(content, value)
        if name is None or text.startswith("null", colon.end()):
            continue
        end = literal.end() if literal else _DECODER.raw_decode(text, colon.end())[1]
        mask = json.dumps(make_mask(name))
        position = end
        if text[colon.end() : end] != mask:
            edits.append(Edit(colon.end(), end, mask, (name,)))
    return edits


def _decode(literal: str) -> str:
    return json.loads(literal, strict=False) if "\\" in literal else literal[1:-1]


def _edit_literal(start: int, literal: str, content: str, find: FindEdits) -> list[Edit]:
    found = find(content)
    if not found:
        return []
    if "\\" not in literal:
        return [
            Edit(start + 1 + e.start, start + 1 + e.end, json.dumps(e.replacement)[1:-1], e.names)
            for e in found
        ]
    return [_quote(start, start + len(literal), apply_edits(content, found), found)]


def _quote(start: int, end: int, replacement: str, edits: list[Edit]) -> Edit:
    names = tuple(name for edit in edits for name in edit.names)
    return Edit(start, end, json.dumps(replacement), names)
