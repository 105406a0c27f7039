"""JSON text -> edits inside it, everything else verbatim.

A tool call's arguments are the policy's action, so the text is not parsed and written anew:
spacing, number forms and the order and repetition of keys stay. Its strings are looked at one by
one, decoded; only those that hold something are replaced.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson

from starpo_trace.privacy.fields import FieldJudge, holds_names, is_schema, keep_family
from starpo_trace.privacy.matching import Edit, apply_edits, make_mask

_STRING_FORM: Final = r'"(?:[^"\\]++|\\.)*+"'
_NUMBER_FORM: Final = r"-?[0-9][0-9.eE+-]*+"
_GAP: Final = r"[ \t\r\n]*+"
_TOKEN: Final = re.compile(rf"{_STRING_FORM}|{_NUMBER_FORM}|[{{}}\[\]]")
_COLON: Final = re.compile(rf"{_GAP}:{_GAP}")
_PAIR: Final = re.compile(
    rf"\[{_GAP}({_STRING_FORM}){_GAP},{_GAP}({_STRING_FORM}|{_NUMBER_FORM}){_GAP}\]"
)
_DECODER: Final = json.JSONDecoder(strict=False)

FindEdits = Callable[[str], list[Edit]]


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
    fields: FieldJudge,
) -> list[Edit]:
    """Valid JSON text -> edits that leave it valid."""
    return _Walk(text, find_string_edits, find_number_edits, fields).find_edits()


class _Frame(NamedTuple):
    """An open object or list."""

    start: int
    family: str | None
    """What a secret's name around it says of everything in it."""
    in_schema: bool


class _Walk:
    """One pass over the tokens of a text."""

    def __init__(
        self,
        text: str,
        find_string_edits: FindEdits,
        find_number_edits: FindEdits | None,
        fields: FieldJudge,
    ) -> None:
        self._text = text
        self._find_string_edits = find_string_edits
        self._find_number_edits = find_number_edits
        self._fields = fields
        self._has_names = holds_names(text)
        self._edits: list[Edit] = []
        self._frames: list[_Frame] = []
        self._family: str | None = None  # of the value that comes next
        self._named: dict[int, str | None] = {}  # by where an object begins

    def find_edits(self) -> list[Edit]:
        position = 0
        while (token := _TOKEN.search(self._text, position)) is not None:
            position = self._take(token)
        return self._edits

    def _take(self, token: re.Match[str]) -> int:
        """Take a token, or more -> where the next one is looked for."""
        literal, start, end = token[0], token.start(), token.end()
        if literal in {"]", "}"}:
            self._frames.pop()
        elif literal in {"[", "{"}:
            self._open(start)
            pair = _PAIR.match(self._text, start) if literal == "[" else None
            if pair is not None:
                self._take_pair(pair)
                return pair.end() - 1
            return end
        elif literal[0] == '"' and (colon := _COLON.match(self._text, end)) is not None:
            return self._take_name(start, literal, colon.end())
        else:
            self._take_leaf(start, literal, self._family)
        self._family = self._frames[-1].family if self._frames else None
        return end

    def _open(self, start: int) -> None:
        family = self._family
        in_schema = (
            family is not None
            and self._text[start] == "{"
            and is_schema(_DECODER.raw_decode(self._text, start)[0])
        )
        self._frames.append(_Frame(start, family, in_schema))

    def _take_pair(self, pair: re.Match[str]) -> None:
        first, second = pair[1], pair[2]
        family = self._fields.find_pair((_decode(first), _read(second))) or self._family
        self._take_leaf(pair.start(1), first, self._family)
        self._take_leaf(pair.start(2), second, family)

    def _take_name(self, start: int, literal: str, value_start: int) -> int:
        name = _decode(literal)
        self._edits += _edit_literal(start, literal, name, self._find_string_edits)
        if self._fields.is_denied(name):
            if self._text.startswith("null", value_start):
                self._family = self._frames[-1].family
                return value_start
            end = _DECODER.raw_decode(self._text, value_start)[1]
            self._mask(value_start, end, "field")
            self._family = self._frames[-1].family
            return end
        self._family = self._find_family(name)
        if self._text[value_start] in "tfnNI" or self._text.startswith("-I", value_start):
            self._family = self._frames[-1].family  # true, null, NaN: no token, no secret
        return value_start

    def _find_family(self, name: str) -> str | None:
        frame = self._frames[-1]
        if found := self._fields.find(name):
            return found
        if self._has_names and name.lower() == "value":
            if frame.start not in self._named:
                owner = _DECODER.raw_decode(self._text, frame.start)[0]
                self._named[frame.start] = self._fields.find_named(owner)
            if found := self._named[frame.start]:
                return found
        return keep_family(frame.family, name, in_schema=frame.in_schema)

    def _take_leaf(self, start: int, literal: str, family: str | None) -> None:
        value = _read(literal)
        if name := self._fields.mask_leaf(family, value):
            self._mask(start, start + len(literal), name)
        elif isinstance(value, str) and literal[0] == '"':
            self._edits += _edit_literal(start, literal, value, self._find_string_edits)
        elif self._find_number_edits and (found := self._find_number_edits(literal)):
            edited = apply_edits(literal, found)
            self._edits.append(_quote(start, start + len(literal), edited, found))

    def _mask(self, start: int, end: int, name: str) -> None:
        mask = json.dumps(make_mask(name))
        if self._text[start:end] != mask:
            self._edits.append(Edit(start, end, mask, (name,)))


def _read(literal: str) -> Any:
    """Literal of a string or number -> its value; a number too long for Python stays text."""
    if literal[0] == '"':
        return _decode(literal)
    try:
        return json.loads(literal)
    except ValueError:
        return literal


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
