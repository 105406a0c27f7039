"""What a program may ask of redaction. Loads no rule: they are compiled when a text is looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starpo_trace.privacy.rules import Rule

MIN_KEY_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What is masked before anything is queued, written or sent."""

    secrets: bool = True
    """The built-in rules for credentials."""
    rules: "Sequence[Rule]" = ()
    """Further rules: `Rule(name="employee_id", pattern=r"EMP-[0-9]{6}")`, `PII`."""
    function: Callable[[str], str] | None = None
    """Called with each text after the rules; a text on which it raises is masked whole."""
    allow: Sequence[str] = ()
    """Texts, or regular expressions of texts, never masked by a rule."""
    deny: Sequence[str] = ()
    """Texts always masked; stronger than `allow`."""
    deny_fields: Sequence[str] = ()
    """Names of object fields, in any case, whose whole value is masked."""
    pseudonym_key: bytes | None = None
    """Key (HMAC-SHA-256) that gives equal values of `pseudonym` rules equal masks."""
