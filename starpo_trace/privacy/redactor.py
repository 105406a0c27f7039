"""Texts, JSON, values and messages -> the same without secrets.

Redaction fails closed: a text that cannot be judged, for whatever reason, is replaced whole by
`[REDACTED:error]`. Clean values come back as the very object given; nothing given is ever changed.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from starpo_trace.errors import ConfigError
from starpo_trace.guard import warn_once
from starpo_trace.messages import Message
from starpo_trace.privacy.assignments import ASSIGNMENTS
from starpo_trace.privacy.fields import FieldJudge, holds_names
from starpo_trace.privacy.jsontext import find_json_edits, is_json
from starpo_trace.privacy.matching import Edit, Matcher, apply_edits, find_difference, make_mask
from starpo_trace.privacy.redaction import MIN_KEY_BYTES, Redaction
from starpo_trace.privacy.values import ValueRedactor
from starpo_trace.privacy.vendors import VENDORS

SECRETS: Final = (*VENDORS, *ASSIGNMENTS)

_FAILED: Final = make_mask("error")
_SHORTEST_SECRET: Final = 6
_MAX_KNOWN: Final = 8192
_HIDING_ESCAPE: Final = re.compile(r"\\u00[0-7]")


class Redactor:
    """A compiled redaction, safe to use from several threads."""

    def __init__(self, redaction: Redaction) -> None:
        """Raises ConfigError for a rule, key or list that cannot be used."""
        for name in ("allow", "deny", "deny_fields", "rules"):
            if isinstance(getattr(redaction, name), str):
                raise ConfigError(
                    f"{name}={getattr(redaction, name)!r} of Redaction: give a list, not one text"
                )
        key = redaction.pseudonym_key
        if key is not None and len(key) < MIN_KEY_BYTES:
            raise ConfigError(
                f"a pseudonym key of {len(key)} bytes: give at least {MIN_KEY_BYTES}, such as "
                "secrets.token_bytes(32)"
            )
        self._matcher = Matcher(
            SECRETS if redaction.secrets else (),
            redaction.rules,
            allow=redaction.allow,
            deny=redaction.deny,
            key=key,
            mask_names=[rule.name for rule in SECRETS],
        )
        self.fields = FieldJudge(
            secrets=redaction.secrets,
            deny_fields=redaction.deny_fields,
            is_allowed=self._matcher.is_allowed,
        )
        self._secrets = redaction.secrets
        self._function = redaction.function
        # The built-in rules know no number without a name, nor a secret shorter than its name.
        self.searches_numbers = bool(redaction.rules or redaction.deny or redaction.function)
        self._always_parses = bool(redaction.deny_fields or self.searches_numbers)
        # Histories repeat: a text found clean is known by its keyed 64-bit hash, which `str`
        # computes once per object. A user's function may change its mind: it is always asked.
        self.clean_strings: set[int] = set()
        self._clean_texts: set[int] = set()
        self._clean_jsons: set[int] = set()
        self.plain_keys: set[str] = set()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def num_redactions(self) -> dict[str, int]:
        """Masked stretches so far, by rule."""
        with self._lock:
            return dict(self._counts)

    def redact_text(self, text: str) -> str:
        """Text -> the same object if clean, else with masks; what is JSON stays JSON."""
        return self._redact(text, self._find_string_edits, self._clean_texts)

    def redact_json(self, text: str) -> str:
        """JSON text -> valid JSON text, untouched beside the masks; other text as text."""
        return self._redact(text, self._find_json_edits, self._clean_jsons)

    def redact_string(self, text: str) -> str:
        """A value that is text: as JSON if it looks like it, as tool arguments do."""
        return self._redact(text, self._find_string_edits, self.clean_strings)

    def redact_key(self, key: str) -> str:
        """A field's name; remembers the many that need no further look."""
        redacted = self.redact_text(key)
        if redacted is key and self._function is None and not self.fields.is_telling(key):
            _remember(self.plain_keys, key)
        return redacted

    def redact_value(self, value: Any) -> Any:
        """JSON-like value -> the same object if clean, else a copy, masked at every depth."""
        return ValueRedactor(self).redact(value)

    def redact_message(self, message: Message) -> Message:
        """GenAI message -> the same object if clean, else a redacted copy."""
        redacted = ValueRedactor(self).redact(message)
        if isinstance(redacted, dict):
            return redacted
        return {"role": "unknown", "parts": [{"type": "text", "content": _FAILED}]}

    def redact_tokens(self, tokens: Sequence[str], text: str) -> list[bool]:
        """Which of the tokens that make up a text touch what is masked in it.

        Tokens that do not add up to the text (parts of one character decode to nothing) cannot be
        placed: then all are marked, unless nothing is masked at all.
        """
        try:
            joined = "".join(tokens)
            edits = self._find_string_edits(text)
            if joined != text:
                is_dirty = bool(edits or self._find_string_edits(joined))
                return [is_dirty] * len(tokens)
            return _mark_tokens(tokens, edits)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - fails closed
            self.fail("placing tokens", error)
            return [True] * len(tokens)

    def _redact(self, text: str, find: Callable[[str], list[Edit]], clean: set[int]) -> str:
        known = hash(text)
        if known in clean or (len(text) < _SHORTEST_SECRET and not self.searches_numbers):
            return text
        try:
            edits = find(text)
            if edits:
                self.count(name for edit in edits for name in edit.names)
                return apply_edits(text, edits)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - fails closed
            return self.fail("searching a text", error)
        if self._function is None:
            _remember(clean, known)
        return text

    def fail(self, doing: str, error: Exception) -> str:
        """Count and log without the error's own text, which may quote what was to be hidden."""
        self.count(("error",))
        warn_once(
            f"redaction {doing} {type(error).__name__}",
            "%s while %s for secrets: it is replaced by %s (logged once)",
            type(error).__name__,
            doing,
            _FAILED,
        )
        return _FAILED

    def count(self, names: Iterable[str]) -> None:
        """Add to `num_redactions`."""
        with self._lock:
            self._counts.update(names)

    def _find_text_edits(self, text: str) -> list[Edit]:
        edits = self._matcher.find_edits(text)
        if self._function is None:
            return edits
        masked = apply_edits(text, edits)
        try:
            result = self._function(masked)
            if not isinstance(result, str):
                raise TypeError(type(result).__name__)  # noqa: TRY301 - one way to fail
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code; fails closed
            return [Edit(0, len(text), self.fail("calling your redaction function", error), ())]
        if result == masked:
            return edits
        names = (*(name for edit in edits for name in edit.names), "function")
        return find_difference(text, result, names)

    def _find_json_edits(self, text: str) -> list[Edit]:
        if not self._needs_parsing(text):
            return []
        if not is_json(text):
            return self._find_text_edits(text)
        return find_json_edits(
            text,
            find_string_edits=self._find_string_edits,
            find_number_edits=self._find_text_edits if self.searches_numbers else None,
            fields=self.fields,
        )

    def _needs_parsing(self, text: str) -> bool:
        """Whether JSON text may hold anything to mask."""
        if self._always_parses or self._matcher.may_hold(text):
            return True
        if self._secrets and _looks_like_json(text) and holds_names(text):
            return True
        return "\\" in text and "\\u00" in text and _HIDING_ESCAPE.search(text) is not None

    def _find_string_edits(self, text: str) -> list[Edit]:
        return (self._find_json_edits if _looks_like_json(text) else self._find_text_edits)(text)


def _remember(known: set[Any], entry: object) -> None:
    if len(known) >= _MAX_KNOWN:
        known.clear()
    known.add(entry)


def _looks_like_json(text: str) -> bool:
    return text.startswith(("{", "[")) or (text[:1].isspace() and text.lstrip()[:1] in {"{", "["})


def _mark_tokens(tokens: Sequence[str], edits: Sequence[Edit]) -> list[bool]:
    marks, position, pending = [], 0, list(reversed(edits))
    for token in tokens:
        end = position + len(token)
        while pending and pending[-1].end <= position:
            pending.pop()
        marks.append(position < end and bool(pending) and pending[-1].start < end)
        position = end
    return marks
