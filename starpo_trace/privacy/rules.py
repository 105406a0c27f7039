"""What one kind of secret looks like, and the rules for personal data (off by default).

Patterns start with literal text where they can, because `re` finds that fastest, and look behind
themselves afterwards. Quantifiers are possessive or bounded, so that no text makes them slow.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of text to mask."""

    name: str
    """Type in the mask: `employee_id` gives `[REDACTED:employee_id]`."""
    pattern: str
    """Regular expression. A group named `secret` is what is masked, else the whole match."""
    hints: Sequence[str] = ()
    """Case-sensitive texts of which one is in every match: makes clean texts cheap."""
    accept: Callable[[re.Match[str]], bool] | None = None
    """Further test of a match, such as a check digit."""
    pseudonym: bool = False
    """With a key, equal values get equal masks that tell different values apart."""


def has_valid_luhn(match: re.Match[str]) -> bool:
    """Whether the digits of a card number add up (ISO/IEC 7812-1, annex B)."""
    digits = [int(digit) for digit in match[0] if digit.isdecimal()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def has_valid_iban_check(match: re.Match[str]) -> bool:
    """Whether an account number leaves 1 modulo 97 (ISO 13616)."""
    account = match[0].replace(" ", "")
    return int("".join(str(int(c, 36)) for c in account[4:] + account[:4])) % 97 == 1


def _has_valid_octets(match: re.Match[str]) -> bool:
    return all(int(octet) <= 255 for octet in match[0].split("."))


PII: Final = (
    Rule(
        name="email",
        pattern=r"(?<![\w.%+-])[\w.%+-]{1,64}+@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
        hints=("@",),
        pseudonym=True,
    ),
    Rule(
        name="card",
        pattern=r"(?<![\w.-])[0-9](?:[ -]?[0-9]){12,18}(?![\w-])",
        accept=has_valid_luhn,
        pseudonym=True,
    ),
    Rule(
        name="iban",
        pattern=r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)",
        accept=has_valid_iban_check,
        pseudonym=True,
    ),
    Rule(
        name="phone",
        pattern=r"(?<![\w+.-])(?:\+[0-9][0-9 ().-]{6,18}[0-9]"
        r"|\(?[2-9][0-9]{2}\)?[ .-]{1,2}[0-9]{3}[ .-][0-9]{4})(?![\w-])",
        pseudonym=True,
    ),
    Rule(
        name="ip_address",
        pattern=r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w.]\w)(?!\w)",
        accept=_has_valid_octets,
        pseudonym=True,
    ),
)
"""Personal data with a recognisable form: `Redaction(rules=PII)`, or some of them."""
