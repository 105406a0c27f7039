"""Fields of other tools' records (ids, times, attributes) -> what a span row holds.

Every tool writes them its own way: ids as digits, bytes or names of their own, times as texts or
numbers of some unit, attributes nested, as key-value lists, or with numbers as texts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.otlp import (
    MAX_TIME_NS,
    MalformedSpan,
    SpanRow,
    check_row,
    describe_fault,
)

FAULTS: Final = (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError)
"""What a record of unexpected form raises."""

TRACE_DIGITS: Final = 32
SPAN_DIGITS: Final = 16

_UNITS: Final = ((10**17, 1), (10**14, 10**3), (10**11, 10**6), (0, 10**9))
"""Unix times from so much on -> nanoseconds of their unit; the limits lie in 1973 and 5138."""
_FRACTION: Final = re.compile(r"(?<=:\d\d)[.,](\d+)")
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]+\Z")
_NUMBER: Final = re.compile(r"-?\d{1,18}(\.\d+)?([eE][-+]?\d{1,3})?\Z")
_NUMERIC_KEYS: Final = re.compile(
    r"""( gen_ai\.usage\..+ | llm\.token_count\..+ | llm\.usage\..+ | ai\.usage\..+
        | gen_ai\.request\.(temperature|top_p|top_k|max_tokens|seed|choice\.count)
        | gen_ai\.(request\.)?(frequency|presence)_penalty | llm\.(request\.)?temperature
        | llm\.top_p | gen_ai\.evaluation\.score\.value | .*\.(annotation|evaluation)\.score
        | agent\.trajectory\.step | starpo\.(attempt|seed)
        | starpo\.trajectory\.(num_steps | part\.base | part\.after)
        | starpo\.history\.(base_)?length | starpo\.prompt\.token_ids\.base_(step|length)
        | starpo\.reward\.(min|max|step|signed_ns) )\Z""",
    re.VERBOSE,
)
_EVENT_TIMES: Final = ("time_ns", "time_unix_nano", "timeUnixNano", "timestamp", "time")
_ANY_VALUE: Final = frozenset(
    f"{kind}{suffix}"
    for kind in ("string", "bool", "int", "double", "array", "kvlist", "bytes")
    for suffix in ("Value", "_value")
)


def read_records(
    records: Iterable[Any],
    read: Callable[[Mapping[str, Any]], SpanRow | MalformedSpan],
    source: str,
) -> Iterator[SpanRow | MalformedSpan]:
    """Records -> a span each; one that cannot be read is malformed, its neighbours are read."""
    for record in records:
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"a record is {type(record).__name__}, no object")
            span = read(record)
            yield check_row(span) if isinstance(span, SpanRow) else span
        except FAULTS as error:
            yield make_malformed(record, source, describe_fault(error))


def make_malformed(record: Any, source: str, detail: str) -> MalformedSpan:
    """A record that cannot be read -> what is known of it."""
    fields = record if isinstance(record, Mapping) else {}
    context = fields.get("context")
    context = context if isinstance(context, Mapping) else {}

    def find(*names: str) -> str | None:
        values = (holder.get(name) for holder in (fields, context) for name in names)
        return next((value for value in values if isinstance(value, str)), None)

    return MalformedSpan(
        source=source,
        trace_id=find("trace_id", "traceId", "context.trace_id"),
        span_id=find("span_id", "spanId", "context.span_id", "id"),
        name=find("name") or "",
        scope="",
        detail=detail[:500],
    )


def read_id(value: Any, num_digits: int, *, is_free: bool = False) -> str:
    """Hexadecimal digits (also with `0x`, dashes) or bytes -> digits in lower case.

    Args:
        value: As it was found.
        num_digits: How many it must have.
        is_free: Ids are names of any form; others than digits are replaced by their hash.

    Raises:
        ValueError, TypeError: it is no id.
    """
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if not isinstance(value, str):
        raise TypeError(f"an id is {type(value).__name__}, no text")
    digits = value.strip().lower().removeprefix("0x")
    if not is_free:
        return digits
    if not digits:
        raise ValueError("an id is empty")
    plain = digits.replace("-", "")
    if len(plain) == num_digits and _HEXADECIMAL.match(plain) and plain.strip("0"):
        return plain
    return blake2b(value.encode("utf-8", "replace"), digest_size=num_digits // 2).hexdigest()


def read_time(value: Any) -> int:
    """Unix time in s, ms, us or ns (by its size), ISO text, or datetime -> nanoseconds; 0 for none.

    Raises:
        ValueError, TypeError, OverflowError: it is no time.
    """
    if value is None or value == "" or value != value:  # noqa: PLR0124 (NaN)
        return 0
    if isinstance(value, datetime):
        return _limit(_read_datetime(value))
    if isinstance(value, str):
        text = value.strip()
        if not text.lstrip("+-").isdigit():
            return _limit(_read_iso(text))
        value = int(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a time is {type(value).__name__}")
    unit = next(unit for least, unit in _UNITS if abs(value) >= least)
    return _limit(value * unit if isinstance(value, int) else round(value * unit))


def read_ns(record: Mapping[str, Any], names: Iterable[str]) -> int:
    """The first of these fields that there is -> nanoseconds; the name may say that they are.

    Raises:
        ValueError, TypeError, OverflowError: it is no time.
    """
    name = next((name for name in names if record.get(name) is not None), "")
    value: Any = record.get(name)
    if name.lower().endswith(("_ns", "nano")):
        is_digits = isinstance(value, str) and value.strip().lstrip("+-").isdigit()
        if is_digits or (isinstance(value, int | float) and not isinstance(value, bool)):
            return _limit(int(value))
    return read_time(value)


def _limit(time_ns: int) -> int:
    if time_ns < 0:
        raise ValueError(f"negative time {time_ns}")
    return min(time_ns, MAX_TIME_NS)


def _read_iso(text: str) -> int:
    """ISO text, whose fraction may have more digits than `datetime` keeps."""
    fraction = _FRACTION.search(text)
    whole = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    digits = fraction[1][:9].ljust(9, "0") if fraction else "0"
    return _read_datetime(whole) + int(digits)


def _read_datetime(time: datetime) -> int:
    time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def read_attributes(value: Any) -> dict[str, Any]:
    """JSON text, an object, or a list of key-value structs -> attributes, those without value left out.

    Raises:
        ValueError, TypeError: it is none of these.
    """
    if value is None or value == "":
        return {}
    value = read_json(value)
    if isinstance(value, list | tuple):
        value = {_read_key(pair): pair.get("value") for pair in value}
    if not isinstance(value, Mapping):
        raise TypeError(f"attributes are {type(value).__name__}, no object or key-value list")
    if not all(isinstance(key, str) for key in value):
        raise ValueError("an attribute's key is no text")
    found = {key: read_any_value(each) for key, each in value.items()}
    return {key: restore_number(key, each) for key, each in found.items() if each is not None}


def _read_key(pair: Any) -> Any:
    if not isinstance(pair, Mapping) or "key" not in pair:
        raise TypeError("an attribute in the list has no `key`")
    return pair["key"]


def read_any_value(value: Any) -> Any:
    """OTLP's value of some kind, in either case -> the value; anything else as it is."""
    if not isinstance(value, Mapping) or not value or not _ANY_VALUE.issuperset(value):
        return value
    for kind, content in value.items():
        if content is not None:
            read = _READ_VALUE.get(kind.removesuffix("Value").removesuffix("_value"))
            return content if read is None else read(content)
    return None


_READ_VALUE: Final[dict[str, Callable[[Any], Any]]] = {
    "int": int,
    "double": float,
    "array": lambda held: [read_any_value(each) for each in held.get("values") or ()],
    "kvlist": lambda held: read_attributes(held.get("values") or ()),
}


def restore_number(key: str, value: Any) -> Any:
    """A number that was stored as text under a key of numbers -> the number."""
    if not isinstance(value, str) or not _NUMERIC_KEYS.match(key):
        return value
    found = _NUMBER.match(value.strip())
    if found is None:
        return value
    return int(value) if found[1] is None and found[2] is None else float(value)


def read_error(code: Any, message: Any) -> str | None:
    """Status code as a number or a name, and its message -> text of a failure; None for none."""
    is_error = code == 2 or str(code).upper().removeprefix("STATUS_CODE_") == "ERROR"
    return str(message or "") if is_error else None


def read_events(events: Any) -> tuple[tuple[str, int, dict[str, Any]], ...]:
    """Events as a list of objects -> those of GenAI.

    Raises:
        ValueError, TypeError: they have another form.
    """
    found = []
    for event in read_json(events) or ():
        if not isinstance(event, Mapping):
            raise TypeError(f"an event is {type(event).__name__}, no object")
        name = str(event.get("name") or "")
        if name.startswith("gen_ai."):
            time_ns = read_ns(event, _EVENT_TIMES)
            found.append((name, time_ns, read_attributes(event.get("attributes"))))
    return tuple(found)


def read_links(links: Any) -> tuple[tuple[str, str], ...]:
    """Links as a list of objects -> (trace id, span id) of each.

    Raises:
        ValueError, TypeError: they have another form.
    """
    found = []
    for link in read_json(links) or ():
        if not isinstance(link, Mapping):
            raise TypeError(f"a link is {type(link).__name__}, no object")
        context = link.get("context")
        fields = context if isinstance(context, Mapping) else link
        ids = [
            next((fields[name] for name in names if fields.get(name) is not None), None)
            for names in (("trace_id", "traceId"), ("span_id", "spanId"))
        ]
        trace_id = ids[0].removeprefix("tr-") if isinstance(ids[0], str) else ids[0]
        found.append((read_id(trace_id, TRACE_DIGITS), read_id(ids[1], SPAN_DIGITS)))
    return tuple(found)
