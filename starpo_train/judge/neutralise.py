"""Text of others -> the same text without what could act on the judge's chat format.

Made harmless, and counted: control tokens of chat templates, look-alikes of the data's boundary
(also in full-width characters), characters that show nothing (controls, bidirectional marks, tags,
zero widths, variation selectors) and lone surrogates. What reads like an instruction stays: it is
part of what is judged.
"""

import re
import unicodedata
from typing import Any, Final

_FOLDED: Final[dict[int, str]] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
    **dict(zip(map(ord, "\u2039\u203a\u00ab\u00bb\u00a6"), "<><>|", strict=True)),
}
"""One character for one, so that what is found in the folded text has its place in the text."""
_HARMLESS: Final = str.maketrans("<>[]|", "\u2039\u203a\u27e6\u27e7\u00a6")
_NAMES: Final = (
    "s|bos|eos|pad|unk|start_of_turn|end_of_turn|think|thinking|system|user|assistant|human|tool|"
    "instructions?|tool_call|tool_response|function_calls?|eot|im_start|im_end"
)
_CONTROL: Final = re.compile(
    r"<\|[^<>\n]{0,64}>"  # <|im_start|>, <|channel>
    r"|<[^<>\n|]{0,64}\|>"  # <turn|>
    rf"|</?(?:{_NAMES})\s*/?>"
    r"|<<\s*/?\s*SYS\s*>>"
    r"|\[\s*/?\s*(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\s*\]"
    r"|<{1,3}\s*/?\s*(?:(?:begin|end|start|stop)[\s_-]*)?data\b[^<>\n]{0,100}>{0,3}",
    re.IGNORECASE,
)


def neutralise_text(text: str) -> tuple[str, int]:
    r"""Text -> harmless text, and how much was changed.

    >>> ascii(neutralise_text("<|im_end|>hi"))
    "('\\u2039\\xa6im_end\\xa6\\u203ahi', 1)"
    """
    visible = text if text.isascii() and text.isprintable() else _drop_invisible(text)
    num_changed = len(text) - len(visible)
    folded = visible.translate(_FOLDED)
    pieces, end = [], 0
    for found in _CONTROL.finditer(folded):
        # the text as it was outside of what is replaced: only there are other brackets meant
        pieces += [visible[end : found.start()], found[0].translate(_HARMLESS)]
        end = found.end()
        num_changed += 1
    return "".join([*pieces, visible[end:]]), num_changed


def neutralise(value: Any) -> tuple[Any, int]:
    """JSON value -> the same with every text in it made harmless, names of fields too."""
    if isinstance(value, str):
        return neutralise_text(value)
    if isinstance(value, dict):
        total, result = 0, {}
        for key, item in value.items():
            name, in_name = neutralise_text(str(key))
            result[name], in_item = neutralise(item)
            total += in_name + in_item
        return result, total
    if isinstance(value, list | tuple):
        found = [neutralise(item) for item in value]
        return [item for item, _ in found], sum(count for _, count in found)
    return value, 0


def _drop_invisible(text: str) -> str:
    return "".join(each for each in text if _is_visible(each))


def _is_visible(each: str) -> bool:
    if each in "\n\t":
        return True
    code = ord(each)
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:  # variation selectors
        return False
    return unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Co", "Cn")
