"""What a report is made from: policies, and what else a reader can be given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from starpo_train.errors import ConfigError

Role = Literal["baseline", "candidate", "evidence"]

PLACEHOLDER = "{trace_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """A policy that was evaluated."""

    name: str
    """As the page calls it."""
    dataset: Path
    """Folder of the evaluation's dataset."""
    role: Role
    """baseline | candidate | evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportExtras:
    """What a page shows when it is given."""

    scores: Mapping[str, Path] = field(default_factory=dict)
    """Policy's name -> what `starpo-train score` wrote of its dataset."""
    credit: Mapping[str, Path] = field(default_factory=dict)
    """Policy's name -> what `starpo-train credit` wrote of its dataset."""
    judges: tuple[Path, ...] = ()
    """Output folders of `starpo-train judge`."""
    fail_below: float = 0.5
    """A run fails an evaluator with a score below this."""
    trace_link: str | None = None
    """Address of a trace in a viewer, with `{trace_id}` in it."""
    key_file: Path | None = None
    """Keys to verify the verdict with; without it those of the environment, if any."""


def check_trace_link(template: str) -> str:
    """The template itself, when a link made from it leads where it says.

    Raises:
        ConfigError: no http(s) address, or no place for the trace's id behind the host.
    """
    try:
        parts = urlsplit(template)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_web, parts = False, urlsplit("")
    if not is_web or not template.isprintable() or " " in template:
        raise ConfigError(f"--trace-link {template!r}: must be an http:// or https:// address.")
    if PLACEHOLDER not in template or PLACEHOLDER in parts.netloc:
        raise ConfigError(f"--trace-link {template!r}: must have {PLACEHOLDER} behind the host.")
    return template


def link_trace(template: str | None, trace_id: str | None) -> str | None:
    """Address of one trace; whatever the id holds stays one part of the address.

    >>> link_trace("https://viewer/{trace_id}", "a/b")
    'https://viewer/a%2Fb'
    """
    if template is None or not trace_id:
        return None
    return template.replace(PLACEHOLDER, quote(trace_id, safe="", errors="replace"))
