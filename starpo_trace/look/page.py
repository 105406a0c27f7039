"""Opened dataset -> one HTML file that needs no network and obeys nothing in the data.

The policy in the page allows one script and one style sheet, by their hashes, and no other source of
anything. Data stands in the page as escaped text, or as JSON in an element that is not executed and
that the script shows only as text.
"""

import json
import os
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from starpo_trace.errors import ConfigError
from starpo_trace.look import draw
from starpo_trace.look.numbers import format_number
from starpo_trace.look.opened import Opened, open_path
from starpo_trace.look.overview import Overview, summarize
from starpo_trace.look.reasons import MEANINGS
from starpo_trace.look.sample import Sample, draw_sample
from starpo_trace.look.visible import make_visible

MAX_TRAJECTORIES: Final = 300
MAX_BYTES: Final = 8 << 20

_SCRIPTS: Final = ("dom.js", "list.js", "branches.js", "story.js", "main.js")
_MAX_SOURCES: Final = 200


def write_page(
    path: Path,
    output: Path,
    *,
    max_trajectories: int = MAX_TRAJECTORIES,
    max_bytes: int = MAX_BYTES,
) -> Sample:
    """Dataset, trace store or span file -> page at `output`; the sample that it holds.

    Raises:
        ConfigError: `output` is no name for a page, or cannot be written.
        DatasetError, SourceError: there is nothing readable at `path`.
    """
    _check_output(path, output)
    opened = open_path(path)
    overview = summarize(opened)
    sample = draw_sample(opened.scan, max_trajectories=max_trajectories, max_bytes=max_bytes)
    _replace_file(output, render_page(opened, overview, sample))
    return sample


def render_page(opened: Opened, overview: Overview, sample: Sample) -> str:
    """Numbers and trajectories -> HTML."""
    folder = files("starpo_trace.look")
    style = (folder / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((folder / "script" / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )
    return (
        make_environment()
        .get_template("page.html.j2")
        .render(
            title=opened.path.resolve().name,
            path=str(opened.path),
            policy=policy,
            # Both are files of this package; in an element of their kind, escapes would be wrong.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            data=Markup(sample.payload.dump()),  # noqa: S704 (has no `<`, `>`, `&`)
            meanings=Markup(json.dumps(MEANINGS)),  # noqa: S704 (ours, plain words)
            overview=overview,
            sample=sample,
            manifest=opened.manifest,
            max_sources=_MAX_SOURCES,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=version("starpo"),
        )
    )


def make_environment() -> jinja2.Environment:
    """Template engine that makes hidden characters visible and escapes all that it prints."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("starpo_trace.look", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_show_hidden,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "number": format_number,
        "percent": lambda part, whole: f"{100 * part / whole:.1f}%" if whole else "—",
        "megabytes": lambda size: f"{size / (1 << 20):.4g} MiB",
    }
    environment.globals |= {"draw": draw}
    return environment


def _show_hidden(value: Any) -> Any:
    return (
        make_visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    )


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _check_output(path: Path, output: Path) -> None:
    if output.suffix.lower() not in {".html", ".htm"}:
        raise ConfigError(f"--html {output}: the name of a page ends in .html")
    if output.is_dir():
        raise ConfigError(f"--html {output}: is a folder; give a file in it")
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise ConfigError(
            f"--html {output}: lies in {path}, which holds nothing but its own files; "
            "put the page beside it"
        )


def _replace_file(output: Path, html: str) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
