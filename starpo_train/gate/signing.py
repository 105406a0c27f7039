"""Verdict + key -> signature, and back: a verdict that nobody has edited.

HMAC-SHA-256 over the canonical JSON of everything in `verdict.json` but the signature itself, with a
key of a file as `starpo-trace keys new` makes (a line `id hex` each, the first signs, all verify).
It covers the hashes of all that the gate saw, so with the file these are pinned too.
"""

import hmac
import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from starpo_trace.errors import ConfigError as KeyringError
from starpo_trace.signing import Keyring, parse_key, read_keyring
from starpo_train.errors import ConfigError

KEY_VARIABLE = "STARPO_VERDICT_KEY"
KEY_FILE_VARIABLE = "STARPO_VERDICT_KEY_FILE"
_SIGNATURE = re.compile(r"v1:([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_PURPOSE = b"starpo verdict v1\n"  # a signature of anything else with the same key is none of ours


def find_verdict_keys(
    file: Path | None, environment: Mapping[str, str] = os.environ
) -> Keyring | None:
    """Keys of `file`, else of `STARPO_VERDICT_KEY` (`id:hex`) or `STARPO_VERDICT_KEY_FILE`, if any.

    Raises:
        ConfigError: what is there cannot be used.
    """
    try:
        if file is not None:
            return read_keyring(file)
        if text := environment.get(KEY_VARIABLE):
            return Keyring(keys=dict([parse_key(text, KEY_VARIABLE)]))
        if path := environment.get(KEY_FILE_VARIABLE):
            return read_keyring(path)
    except KeyringError as error:
        raise ConfigError(str(error)) from None
    return None


def render_canonical(record: Mapping[str, Any]) -> bytes:
    """Verdict without its signature -> the bytes that are signed and hashed.

    >>> render_canonical({"b": 1.0, "a": None, "signature": "v1:k:00"})
    b'{"a":null,"b":1.0}'
    """
    unsigned = {key: value for key, value in record.items() if key != "signature"}
    return json.dumps(
        unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def identify_verdict(record: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form: what names this verdict."""
    return sha256(render_canonical(record)).hexdigest()


def sign_verdict(record: Mapping[str, Any], keys: Keyring) -> str:
    """Verdict -> `v1:<key id>:<hex>` with the first key."""
    key_id, key = next(iter(keys.keys.items()))
    return f"v1:{key_id}:{_digest(record, key)}"


def find_signature_fault(record: Mapping[str, Any], keys: Keyring) -> str | None:
    """None when one of the keys signed exactly this verdict, else what is wrong, in words."""
    signature = record.get("signature")
    if signature is None:
        return "it is not signed"
    match = _SIGNATURE.fullmatch(str(signature))
    if match is None:
        return "its signature is not of the form v1:<key id>:<hex>"
    key = keys.keys.get(match[1])
    if key is None:
        return f"key {match[1]} is not among the keys"
    try:
        is_same = hmac.compare_digest(_digest(record, key), match[2])
    except ValueError:  # nan, which no verdict of ours has
        is_same = False
    return None if is_same else f"key {match[1]} did not sign what it says now"


def _digest(record: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, _PURPOSE + render_canonical(record), sha256).hexdigest()
