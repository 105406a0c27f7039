"""Text -> the few rules that could match it.

Most texts hold no secret, so what counts is how fast that is seen. A text is reduced to its
skeleton: characters that are frequent in prose and JSON and say little about secrets (most lower
case letters, blanks, quotes, brackets, most digits) are deleted, `:` becomes `=`; one call of
`bytes.translate` does it. Each rule names hints, texts of which one is in whatever it matches, and
a text with a hint in it has the hint's skeleton in its skeleton. So a handful of substring tests on
about a tenth of the text decides which patterns run at all.

Prefixes that end in an underscore would leave nothing selective in a skeleton. One pattern over
the text looks for those, followed by a long word.
"""

import re
from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import Final, Protocol

_KEPT: Final = (ascii_uppercase + "239gjkpqwxyz@.-=").encode()
_TABLE: Final = bytes.maketrans(b":", b"=")
_DELETED: Final = bytes(set(range(256)) - set(_KEPT) - set(b":"))
_LONG_WORD: Final = 16
_SHORT_SKELETON: Final = 48


class Hinted(Protocol):
    """A rule as far as this module cares."""

    @property
    def hints(self) -> Sequence[str]:
        """Texts of which one is in whatever the rule matches; none: the rule always runs."""
        ...


class Prefilter:
    """Chooses rules by the hints found in a text."""

    __slots__ = ("_always", "_by_image", "_joined", "_prefixes", "_rules", "_underscored")

    def __init__(self, rules: Sequence[Hinted]) -> None:
        self._rules = range(len(rules))
        by_image: dict[bytes, set[int]] = {}
        always, underscored, prefixes = set[int](), set[int](), set[str]()
        for index, rule in enumerate(rules):
            images = {make_skeleton(hint) for hint in rule.hints}
            if rule.hints and all(hint.endswith("_") for hint in rule.hints):
                underscored.add(index)
                prefixes.update(rule.hints)
            elif not images or b"" in images:
                always.add(index)
            else:
                for image in images:
                    by_image.setdefault(image, set()).add(index)
        self._by_image = tuple((image, frozenset(found)) for image, found in by_image.items())
        self._joined = re.compile(b"|".join(re.escape(image) for image in by_image) or b"(?!)")
        self._always = frozenset(always)
        self._underscored = frozenset(underscored)
        self._prefixes = _compile_prefixes(prefixes)

    def select(self, text: str) -> Iterable[int]:
        """Indices of the rules that may match, in order."""
        found = self._always
        skeleton = make_skeleton(text)
        if len(skeleton) > _SHORT_SKELETON or self._joined.search(skeleton):
            for image, rules in self._by_image:
                if image in skeleton:
                    found = found | rules
        if "_" in text and self._prefixes.search(text):
            found = found | self._underscored
        return sorted(found) if found else ()


def make_skeleton(text: str) -> bytes:
    """Text -> the characters of it that tell secrets from prose."""
    try:
        data = text.encode()
    except UnicodeEncodeError:  # lone surrogates
        data = text.encode("utf-8", "surrogatepass")
    return data.translate(_TABLE, _DELETED)


def _compile_prefixes(prefixes: Iterable[str]) -> re.Pattern[str]:
    """Prefixes that end in `_` -> a pattern that starts with the underscore, which is fast."""
    behind = "|".join(f"(?<={re.escape(prefix)})" for prefix in sorted(prefixes))
    return re.compile(rf"_(?=[A-Za-z0-9]{{{_LONG_WORD}}})(?:{behind or '(?!)'})")
