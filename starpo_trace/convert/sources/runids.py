"""What tells a recorded run, or a span of it, apart -> ids; never random, so that copies are equal."""

from hashlib import blake2b
from typing import Any

from starpo_trace.messages import dump_json


def hash_ids(*key: Any) -> tuple[str, str]:
    """What tells a span apart -> a trace id and a span id."""
    digits = blake2b(dump_json(key).encode("utf-8", "surrogatepass"), digest_size=24).hexdigest()
    return digits[:32], digits[32:]


def hash_content(value: Any) -> str:
    """Record of a run as the file has it -> its hash."""
    return blake2b(dump_json(value).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
