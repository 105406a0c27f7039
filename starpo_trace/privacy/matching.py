"""Text -> the stretches of it to mask, by rules, allowed and denied texts."""

import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from starpo_trace.errors import ConfigError
from starpo_trace.privacy.prefilter import Prefilter

if TYPE_CHECKING:
    from starpo_trace.privacy.rules import Rule

OWN_MASKS: Final = ("deny", "error", "field", "function")
_MAX_ROUNDS: Final = 8  # each round masks more, and masks are opaque; two are rare already
_RULE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Edit(NamedTuple):
    """One stretch of a text and what takes its place."""

    start: int
    end: int
    replacement: str
    names: tuple[str, ...]
    """Rules behind it, for counting."""


def make_mask(name: str) -> str:
    """The mask of a type."""
    return f"[REDACTED:{name}]"


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """Text with its stretches replaced; edits are in order and do not overlap."""
    pieces, position = [], 0
    for edit in edits:
        pieces += (text[position : edit.start], edit.replacement)
        position = edit.end
    return "".join((*pieces, text[position:]))


def find_difference(old: str, new: str, names: tuple[str, ...]) -> list[Edit]:
    """Two texts -> the one edit between what they have in common at both ends."""
    limit = min(len(old), len(new))
    start = next((i for i in range(limit) if old[i] != new[i]), limit)
    tail = next((i for i in range(limit - start) if old[-1 - i] != new[-1 - i]), limit - start)
    end = len(old) - tail
    return [Edit(start, end, new[start : len(new) - tail], names)] if old != new else []


class _Compiled:
    """A rule whose pattern is compiled when a text first may hold it: most never are."""

    def __init__(self, rule: "Rule") -> None:
        self.name = rule.name
        self.accept = rule.accept
        self.pseudonym = rule.pseudonym
        self._source = rule.pattern

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self._source)

    @cached_property
    def group(self) -> str | int:
        return "secret" if "secret" in self.pattern.groupindex else 0


class _Span(NamedTuple):
    start: int
    end: int
    priority: int


class Matcher:
    """Compiled rules; finds what is to be masked in one text."""

    def __init__(
        self,
        builtin: Sequence["Rule"],
        rules: Sequence["Rule"],
        *,
        allow: Sequence[str],
        deny: Sequence[str],
        key: bytes | None,
        mask_names: Iterable[str],
    ) -> None:
        """Raises ConfigError for one of `rules`, or a text, that cannot be used."""
        self._rules = [*map(_Compiled, builtin), *map(_compile_rule, rules)]
        self._prefilter = Prefilter((*builtin, *rules))
        self._allow = [_compile_allowed(text) for text in allow]
        self._deny = tuple(deny)
        if "" in self._deny or "" in allow:
            raise ConfigError("'' in allow or deny of Redaction: give texts of one character up")
        self._key = key
        names = "|".join(sorted({*mask_names, *OWN_MASKS, *(rule.name for rule in rules)}))
        self._masks = re.compile(rf"\[(?:REDACTED:(?:{names})|(?:{names}):[0-9a-f]{{12}})\]")

    def find_edits(self, text: str) -> list[Edit]:
        """Stretches to mask so that nothing in the masked text matches any more."""
        edits = self._find_once(text)
        if not edits:
            return edits
        masked = apply_edits(text, edits)
        again = self._find_once(masked)
        if not again:
            return edits
        names = tuple(name for edit in edits for name in edit.names)
        for _ in range(_MAX_ROUNDS):
            masked = apply_edits(masked, again)
            names += tuple(name for edit in again for name in edit.names)
            again = self._find_once(masked)
            if not again:
                return find_difference(text, masked, names)
        return [Edit(0, len(text), make_mask(names[0]), names)]

    def may_hold(self, text: str) -> bool:
        """Whether a search finds something, or a list or object under a secret's name."""
        if any(literal in text for literal in self._deny):
            return True
        return any(
            rule.accept is None or rule.accept(match)
            for rule in map(self._rules.__getitem__, self._prefilter.select(text))
            for match in rule.pattern.finditer(text)
        )

    def is_allowed(self, text: str) -> bool:
        """Whether the whole text lies within allowed text."""
        return bool(self._allow) and _is_within(0, len(text), self._find_allowed(text))

    def make_mask(self, priority: int, value: str) -> str:
        """The mask of a rule for a value: with a key, equal values have equal masks."""
        rule = self._rules[priority]
        if self._key is None or not rule.pseudonym:
            return make_mask(rule.name)
        digest = hmac.digest(self._key, value.encode("utf-8", "surrogatepass"), "sha256")
        return f"[{rule.name}:{digest.hex()[:12]}]"

    def _find_once(self, text: str) -> list[Edit]:
        spans = [
            span for index in self._prefilter.select(text) for span in self._match(index, text)
        ]
        if spans and self._allow:
            allowed = self._find_allowed(text)
            spans = [span for span in spans if not _is_within(span.start, span.end, allowed)]
        spans += (span for literal in self._deny for span in _find_literal(literal, text))
        if not spans:
            return []
        if "[" in text:
            masks = [mask.span() for mask in self._masks.finditer(text)]
            spans = [piece for span in spans for piece in _cut_out(span, masks)]
        return [self._make_edit(span, text) for span in _merge(spans)]

    def _match(self, index: int, text: str) -> Iterator[_Span]:
        rule = self._rules[index]
        for match in rule.pattern.finditer(text):
            start, end = match.span(rule.group)
            if start < end and (rule.accept is None or rule.accept(match)):
                yield _Span(start, end, index)

    def _make_edit(self, span: _Span, text: str) -> Edit:
        start, end, priority = span
        if priority < 0:
            return Edit(start, end, make_mask("deny"), ("deny",))
        mask = self.make_mask(priority, text[start:end])
        return Edit(start, end, mask, (self._rules[priority].name,))

    def _find_allowed(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for pattern in self._allow for match in pattern.finditer(text)]


def _compile_rule(rule: "Rule") -> _Compiled:
    if not _RULE_NAME.fullmatch(rule.name) or rule.name in OWN_MASKS:
        raise ConfigError(
            f"name={rule.name!r} of a redaction rule: use up to 40 lower-case letters, digits and "
            f"underscores, beginning with a letter, and none of {', '.join(OWN_MASKS)}"
        )
    compiled = _Compiled(rule)
    try:
        _ = compiled.pattern
    except (re.error, OverflowError, RecursionError, TypeError) as error:
        raise ConfigError(
            f"pattern={rule.pattern!r} of redaction rule {rule.name!r} is no regular expression: "
            f"{error}"
        ) from error
    return compiled


def _compile_allowed(text: str) -> re.Pattern[str]:
    """An allowed text is taken both literally and, where it is one, as a regular expression."""
    literal = re.escape(text)
    try:
        return re.compile(f"{literal}|(?:{text})")
    except (re.error, OverflowError, RecursionError):
        return re.compile(literal)


def _find_literal(literal: str, text: str) -> Iterator[_Span]:
    start = text.find(literal)
    while start >= 0:
        yield _Span(start, start + len(literal), -1)
        start = text.find(literal, start + 1)


def _is_within(start: int, end: int, allowed: Sequence[tuple[int, int]]) -> bool:
    return any(first <= start and end <= last for first, last in allowed)


def _cut_out(span: _Span, masks: Sequence[tuple[int, int]]) -> Iterator[_Span]:
    """What of a stretch is not yet masked."""
    start = span.start
    for first, last in masks:
        if last <= start or first >= span.end:
            continue
        if start < first:
            yield _Span(start, first, span.priority)
        start = last
    if start < span.end:
        yield _Span(start, span.end, span.priority)


def _merge(spans: Iterable[_Span]) -> list[_Span]:
    """Overlapping stretches become one, under the rule that comes first."""
    merged: list[_Span] = []
    for span in sorted(spans):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            priority = min(last.priority, span.priority)
            merged[-1] = _Span(last.start, max(last.end, span.end), priority)
        else:
            merged.append(span)
    return merged
