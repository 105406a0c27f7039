"""Things that must not be recorded, one set for each way into a span, and the forms they may take."""

import base64
import hashlib
import json
from collections.abc import Iterator
from urllib.parse import quote, quote_plus


class Sentinels:
    """Makes the sentinels of each channel, and finds them again."""

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        """Channel -> what went into it."""
        self.deny: list[str] = []
        """Literals that the deny list of the redaction must hold."""

    def token(self, channel: str) -> str:
        """A secret with a form that the built-in rules know."""
        digest = hashlib.sha256(channel.encode()).hexdigest()
        return self._keep(channel, f"ghp_{digest[:36]}")

    def text(self, channel: str) -> str:
        """A text with secrets of several rules, a user's rule, and a literal of the deny list."""
        digest = hashlib.sha256(channel.encode()).hexdigest()
        key = self._keep(channel, f"AKIA{digest[:16].upper()}")
        badge = self._keep(channel, f"EMP-{int(digest[:8], 16) % 10**6:06d}")
        literal = self._keep(channel, f'Projekt "Falké" {digest[:6]}')
        password = self._keep(channel, f"Pw{digest[8:20]}")
        url = f"postgres://agent:{password}@db/x"
        return f"say {self.token(channel)} and {key}, {badge} of {literal} at {url}."

    def find(self, data: bytes) -> set[str]:
        """Channels of which something is in the data, in any form."""
        return {
            channel
            for channel, values in self.values.items()
            if any(form in data for value in values for form in list_forms(value))
        }

    def _keep(self, channel: str, value: str) -> str:
        values = self.values.setdefault(channel, [])
        if value not in values:
            values.append(value)
            if '"' in value:
                self.deny.append(value)
        return value


def list_forms(value: str) -> Iterator[bytes]:
    """A value as it is, escaped as JSON once and twice, in a URL, and in base64 at any place."""
    for text in (value, _escape(value, is_ascii=True), _escape(value, is_ascii=False)):
        yield text.encode()
        yield _escape(text, is_ascii=False).encode()
    yield quote(value, safe="").encode()
    yield quote_plus(value).encode()
    data = value.encode()
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(bytes(offset) + data)
            # From the first to the last character that is this value's alone.
            yield encoded[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6]


def _escape(text: str, *, is_ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=is_ascii)[1:-1]
