"""Recorded text -> the same with every character that would hide or reorder text written out.

A direction override makes a line read as something else than it is, a tag character carries words
that nobody sees, and a control character is nothing in a page.
"""

import re
from typing import Final

_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}
_HIDDEN: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e"  # blanks and marks of no width
    r"\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e0fff]"  # surrogates, tags, variation selectors of no script
)


def make_visible(text: str) -> str:
    r"""Text -> with hidden characters as pictures or codes; line ends and tabs stay.

    >>> make_visible("a\x00b\u202ec\r\nd")
    'a␀b⟨U+202E⟩c\nd'
    """
    return _HIDDEN.sub(_write_out, text.replace("\r\n", "\n"))


def _write_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _PICTURES.get(code, f"⟨U+{code:04X}⟩")
