"""How much the receiver takes on, per request and in all."""

from dataclasses import dataclass

MAX_NESTING = 30
"""Lists and maps inside each other in one attribute value.

Protobuf readers stop at 100 nested messages; a map in the attribute of an event takes three a
level, below six of OTLP itself. What is stored must stay readable to everybody.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold, and how many may be worked on at once."""

    max_body_bytes: int = 16 << 20
    """Body as sent, compressed or not."""
    max_decompressed_bytes: int = 64 << 20
    """Body after decompression; it is never inflated beyond this."""
    max_ratio: int = 500
    """Decompressed to compressed bytes, once `ratio_from_bytes` came out. Agents that resend a
    history reach 150; zeros reach 1,030."""
    ratio_from_bytes: int = 8 << 20
    """Decompressed size below which any ratio is fine."""
    max_spans: int = 50_000
    """Spans in one request; also resources, and scopes of one resource."""
    max_span_bytes: int = 16 << 20
    """One span, encoded."""
    max_attribute_bytes: int = 8 << 20
    """One attribute, encoded."""
    max_values: int = 1_000_000
    """Attribute values in one request, those inside lists and maps, events and links included."""
    max_json_marks: int = 4_000_000
    """Commas and opening brackets of a JSON body, braces twice: what bounds the memory that
    parsing it takes."""
    max_requests: int = 64
    """Requests worked on at once, over both protocols."""
    max_held_bytes: int = 256 << 20
    """Bodies held at once, over both protocols."""
    max_connections: int = 1024
    """Open HTTP connections."""
    header_timeout_s: float = 10.0
    """TLS handshake, and request line with headers, each."""
    body_timeout_s: float = 30.0
    """Body, from its headers to its end."""
    keep_alive_s: float = 75.0
    """Idle HTTP connection; exporters send every five seconds."""


DEFAULT_LIMITS = Limits()
