"""Arguments and environment -> a redactor, or none."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from starpo_trace.errors import ConfigError
from starpo_trace.guard import warn_once
from starpo_trace.privacy import KEY_FILE_VARIABLE, KEY_VARIABLE, REDACTION_VARIABLE
from starpo_trace.privacy.redaction import MIN_KEY_BYTES, Redaction

if TYPE_CHECKING:
    from starpo_trace.privacy.redactor import Redactor


def build_redactor(
    redaction: Redaction | bool | None,  # noqa: FBT001 - the argument of instrument() as given
    environment: Mapping[str, str] = os.environ,
) -> "Redactor | None":
    """Argument of `instrument()` and the environment -> redactor, or None for no redaction.

    A variable that cannot be used is warned of, and redaction is on.

    Raises:
        ConfigError: the argument cannot be used.
    """
    switch = environment.get(REDACTION_VARIABLE, "").strip().lower()
    if switch not in {"", "on", "off"}:
        warn_once(
            f"variable {REDACTION_VARIABLE}",
            "%s=%r in the environment cannot be used: say on or off; redaction is on",
            REDACTION_VARIABLE,
            switch,
        )
        switch = "on"
    if switch == "off":
        return None
    if redaction is None or redaction is False:
        if switch != "on":  # an operator's switch wins over the program's own wish
            return None
        redaction = Redaction()
    if redaction is True:
        redaction = Redaction()
    if not isinstance(redaction, Redaction):
        raise ConfigError(
            f"redaction={redaction!r} in instrument(): give a starpo_trace.Redaction, True or False"
        )
    from starpo_trace.privacy.redactor import Redactor

    key = redaction.pseudonym_key or _read_key(environment)
    return Redactor(replace(redaction, pseudonym_key=key))


@cache
def build_default_redactor() -> "Redactor | None":
    """Redactor of a process that asked for nothing in particular; None when switched off."""
    return build_redactor(redaction=True)


def mask_by_default(text: str) -> str:
    """Text -> the text that such a process may log."""
    redactor = build_default_redactor()
    return text if redactor is None else redactor.redact_text(text)


def _read_key(environment: Mapping[str, str]) -> bytes | None:
    """Key of the environment; None without one, or with one that cannot be used."""
    name = KEY_VARIABLE if environment.get(KEY_VARIABLE) else KEY_FILE_VARIABLE
    value = environment.get(name)
    if not value:
        return None
    problem = f"a key has at least {MIN_KEY_BYTES} bytes"
    try:
        key = value.encode(errors="surrogateescape")
        if name == KEY_FILE_VARIABLE:
            key = Path(value).read_bytes().strip()
    except (OSError, ValueError) as error:
        key = b""
        problem = f"{value!r} cannot be read ({getattr(error, 'strerror', None) or error})"
    if len(key) < MIN_KEY_BYTES:
        warn_once(
            f"variable {name}",
            "%s in the environment cannot be used: %s; masks bear no pseudonyms",
            name,
            problem,
        )
        return None
    return key
