"""Answer, reference -> are they the same? Never: does one contain the other."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from starpo_train.evals.path import drop_thoughts

_NUMBER: Final = re.compile(
    r"([$€£]?)\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+)\s*%?"
)
_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_TRIM: Final = " \t\r\n.,;:!?\"'`*_()[]{}"


def normalize_answer(text: str) -> str:
    """Case, white space, compatibility forms and punctuation at the ends do not tell answers apart.

    >>> normalize_answer("  The **Eiffel  Tower**. ")
    'the **eiffel tower'
    """
    return _trim(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def are_same(answer: str, reference: str) -> bool:
    """Whether an answer is the reference: as normalized text, or as the same number.

    >>> are_same("Refund 4411.", "refund 4411"), are_same("I did NOT refund 4411", "refund 4411")
    (True, False)
    >>> are_same("$1,200.00", "1200"), are_same("12", "1200")
    (True, False)
    >>> are_same(".5", "5"), are_same("€5", "$5"), are_same("$5", "5")
    (False, False, True)
    """
    left, right = normalize_answer(drop_thoughts(answer)), normalize_answer(reference)
    if left == right:
        return bool(right)
    found, known = _read_number(drop_thoughts(answer)), _read_number(reference)
    if found is None or known is None:
        return False
    (number, currency), (wanted, wanted_currency) = found, known
    return number == wanted and (currency == wanted_currency or not (currency and wanted_currency))


def are_same_words(answer: str, reference: str) -> bool:
    """As `are_same`, without punctuation and English articles: SQuAD's and HotpotQA's exact match.

    >>> are_same_words("The U.S.", "us"), are_same_words("not the US", "us")
    (True, False)
    """
    left, right = (_ARTICLES.sub(" ", _strip(text)).split() for text in (answer, reference))
    return left == right != []


def list_missing(required: Sequence[str], said: Sequence[str]) -> list[str]:
    """Required outputs that none of the texts holds as whole words; thousands may have commas.

    >>> list_missing(["327", "1200"], ["It is 1327, and 1,200 more."])
    ['327']
    >>> list_missing(["12", "5"], ["€12,50 and -5"])
    ['12', '5']
    """
    texts = [_prepare(text) for text in said]
    return [
        each
        for each in required
        if not any(
            re.search(
                rf"(?<![\w.])(?<!(?<!\w)[-\u2212]){re.escape(_prepare(each))}(?!\w|\.\d|,\d\d?\b)",
                t,
            )
            for t in texts
        )
    ]


def _strip(text: str) -> str:
    plain = unicodedata.normalize("NFKC", drop_thoughts(text)).casefold()
    return "".join(each for each in plain if not unicodedata.category(each).startswith(("P", "S")))


def _prepare(text: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)


def _trim(text: str) -> str:
    """Without punctuation at its ends, but for the point that a number begins with."""
    end = text.rstrip(_TRIM)
    start = end.lstrip(_TRIM)
    cut = end[: len(end) - len(start)]
    is_number = start[:1].isdigit() and cut.endswith(".") and not cut.endswith("..")
    return f".{start}" if is_number else start


def _read_number(text: str) -> tuple[float, str] | None:
    """The number that a text is, with nothing else beside it, and its currency; 5% is .05."""
    plain = _trim(unicodedata.normalize("NFKC", text))
    found = _NUMBER.fullmatch(plain)
    if found is None:
        return None
    number = float(found[2].replace(",", "")) / (100.0 if plain.endswith("%") else 1.0)
    return number, found[1]
