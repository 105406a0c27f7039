"""Recorded text -> text that a terminal only shows.

Ids, names and contents come from agents, and a terminal obeys what it prints: an escape sequence can
hide or forge lines.
"""


def escape_controls(text: str, *, keep: str = "") -> str:
    """Text -> the same on one line, every character that is not printable written as its code.

    `keep` are characters that stay, such as line ends.
    """
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
