"""Values -> text that is safe to look at, by the template engine that escapes it."""

import json
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

_CONTROL = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_CONTROL |= {0x0D: None, 0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# direction overrides could make text read as something else than it is
_CONTROL |= {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def make_environment() -> jinja2.Environment:
    """Template engine that cleans and escapes everything it prints."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=clean_text,
    )
    environment.filters |= {
        "percent": format_percent,
        "number": format_number,
        "signed": format_signed,
        "count": "{:,}".format,
        "commands": mark_commands,
        "breakable": make_breakable,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return environment


def clean_text(value: Any) -> Any:
    r"""Text without invisible or unencodable characters; anything else unchanged.

    >>> clean_text("a\x00b")
    'a␀b'
    """
    if isinstance(value, Markup):
        return Markup(_clean(str(value)))  # noqa: S704 - already escaped, cleaning adds no markup
    return _clean(value) if isinstance(value, str) else value


def format_percent(value: float | None, digits: int = 1) -> str:
    """0.5 -> "50.0%"; None -> a dash."""
    return "—" if value is None else f"{100 * value:.{digits}f}%"


def format_number(value: Any) -> str:
    """A number as short as it can be read; anything else as it is.

    >>> [format_number(x) for x in (1234.5, 0.00012, 3, 2.5, None)]
    ['1,234', '0.00012', '3', '2.5', '—']
    """
    if value is None:
        return "—"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def format_signed(value: float) -> str:
    """With its sign (minus is U+2212), and no sign where it rounds to nothing.

    >>> [format_signed(x) for x in (0.125, -0.5, -0.001)]
    ['+0.12', '\u22120.50', '0.00']
    """
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "\u2212")


def mark_commands(text: str) -> Markup:
    """What stands in backquotes becomes code; everything is escaped."""
    return Markup(  # noqa: S704 - escaped before
        re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    )


def make_breakable(text: str) -> Markup:
    """Long names may break behind their joints; everything is escaped."""
    return Markup(  # noqa: S704 - escaped before
        re.sub(r"([_./:-])(?=\w)", r"\1<wbr>", str(escape(text)))
    )


def _clean(text: str) -> str:
    return text.translate(_CONTROL).encode("utf-8", "replace").decode("utf-8")
