"""Text -> the few rules that could match it.

Most texts hold no secret, so what counts is how fast that is seen. A text is reduced to its
skeleton: characters that are frequent in prose and JSON and say little about secrets (most lower
case letters, blanks, quotes, brackets, most digits) are deleted, `:` becomes `=` and a line break `,`; one call of
`bytes.translate` does it. Each rule names hints, texts of which one is in whatever it matches, and
a text with a hint in it has the hint's skeleton in its skeleton. So a handful of substring tests on
about a tenth of the text decides which patterns run at all.

Tests are grouped by the alphabet they need, each with a skeleton of that alphabet alone, and within
a group by the rarest character, whose absence is the fastest thing to see. Hints that leave nothing
in a skeleton are looked for in the text itself.

Prefixes that end in an underscore would leave nothing selective in a skeleton. One pattern over
the text looks for those, followed by a long word.
"""

import re
from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import Final, Protocol

_KEPT: Final = (ascii_uppercase + "239gjkqwxyz@.-=,").encode()
_TABLE: Final = bytes.maketrans(b":\n", b"=,")
_DELETED: Final = bytes(set(range(256)) - set(_KEPT) - set(b":\n"))
_ALPHABETS: Final = tuple(kept.encode() for kept in (ascii_uppercase + "39z", _KEPT.decode()))
_BY_RARITY: Final = b"@zqJxXQZVWK3UGHYFBMDkNw=OyR"
_LONG_WORD: Final = 16
_SHORT_SKELETON: Final = 128

_Tests = tuple[tuple[int, tuple[tuple[bytes, frozenset[int]], ...]], ...]


class Hinted(Protocol):
    """A rule as far as this module cares."""

    @property
    def hints(self) -> Sequence[str]:
        """Texts of which one is in whatever the rule matches; none: the rule always runs."""
        ...


class Prefilter:
    """Chooses rules by the hints found in a text."""

    __slots__ = ("_always", "_any", "_groups", "_literals", "_prefixes", "_underscored")

    def __init__(self, rules: Sequence[Hinted]) -> None:
        images: dict[bytes, set[int]] = {}
        always, underscored, prefixes = set[int](), set[int](), set[str]()
        literals: dict[str, set[int]] = {}
        for index, rule in enumerate(rules):
            own = _drop_redundant({make_skeleton(hint) for hint in rule.hints})
            if rule.hints and all(hint.endswith("_") for hint in rule.hints):
                underscored.add(index)
                prefixes.update(rule.hints)
            elif not own or "=" in rule.hints:
                always.add(index)
            elif own & {b"", b"="}:
                for hint in rule.hints:  # whose last `=` may be a `:` in texts
                    literals.setdefault(hint.rstrip("="), set()).add(index)
            else:
                for image in own:
                    images.setdefault(image, set()).add(index)
        self._groups = tuple(
            (bytes(set(_KEPT) - set(alphabet)), _group_tests(found))
            for alphabet, found in _split_by_alphabet(images)
        )
        self._any = re.compile(b"|".join(map(re.escape, images)) or b"(?!)")
        self._always = frozenset(always)
        self._literals = tuple((hint, frozenset(rules)) for hint, rules in literals.items())
        self._underscored = frozenset(underscored)
        self._prefixes = _compile_prefixes(prefixes)

    def select(self, text: str) -> Iterable[int]:
        """Indices of the rules that may match, in order."""
        found = self._always
        skeleton = make_skeleton(text)
        if len(skeleton) > _SHORT_SKELETON or self._any.search(skeleton):
            for deleted, tests in self._groups:
                part = skeleton.translate(None, deleted)
                for rarest, images in tests:
                    if rarest in part:
                        for image, rules in images:
                            if image in part:
                                found = found | rules
        for hint, rules in self._literals:
            if hint[0] in text and hint in text:  # one character is seen fastest to be absent
                found = found | rules
        if "_" in text and self._prefixes.search(text):
            found = found | self._underscored
        return sorted(found)


def make_skeleton(text: str) -> bytes:
    """Text -> the characters of it that tell secrets from prose."""
    try:
        data = text.encode()
    except UnicodeEncodeError:  # lone surrogates
        data = text.encode("utf-8", "surrogatepass")
    return data.translate(_TABLE, _DELETED)


def _drop_redundant(images: set[bytes]) -> set[bytes]:
    """Without those in which another one is found anyway."""
    return {i for i in images if not any(other != i and other in i for other in images)}


def _split_by_alphabet(
    images: dict[bytes, set[int]],
) -> Iterable[tuple[bytes, dict[bytes, set[int]]]]:
    """Images by the smallest alphabet that still tells them from others."""
    for number, alphabet in enumerate(_ALPHABETS):
        own: dict[bytes, set[int]] = {}
        for image, rules in images.items():
            home = next(i for i, kept in enumerate(_ALPHABETS) if set(image) <= set(kept))
            if home == number:
                own.setdefault(image, set()).update(rules)
        yield alphabet, own


def _group_tests(images: dict[bytes, set[int]]) -> _Tests:
    groups: dict[int, list[tuple[bytes, frozenset[int]]]] = {}
    for image, rules in images.items():
        rarest = next((c for c in _BY_RARITY if c in image), image[0])
        groups.setdefault(rarest, []).append((image, frozenset(rules)))
    return tuple((rarest, tuple(group)) for rarest, group in groups.items())


def _compile_prefixes(prefixes: Iterable[str]) -> re.Pattern[str]:
    """Prefixes that end in `_` -> a pattern that starts with the underscore, which is fast."""
    behind = "|".join(f"(?<={re.escape(prefix)})" for prefix in sorted(prefixes))
    return re.compile(rf"_(?=[A-Za-z0-9]{{{_LONG_WORD}}})(?:{behind or '(?!)'})")
