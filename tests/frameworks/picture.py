"""Spans of a run -> a picture: the tree, and beside it what ran at the same time.

The axis is the order of beginnings and ends, not seconds: a server on the same machine answers at once.
"""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

_COLOURS: Final = {
    "trajectory": "#334155",
    "agent": "#7c3aed",
    "llm": "#2563eb",
    "step": "#059669",
    "state": "#d97706",
}
_OTHER: Final = "#64748b"
_ROW: Final = 24
_TREE: Final = 400
_BARS: Final = 380
_MARGIN: Final = 14


def draw_tree(spans: Sequence[dict[str, Any]]) -> str:
    """Spans as `describe_spans` gives them -> SVG."""
    times = sorted({span[end] for span in spans for end in ("start_ms", "end_ms")})
    place = {time: index / max(len(times) - 1, 1) for index, time in enumerate(times)}
    height = _ROW * len(spans) + 2 * _MARGIN
    width = _TREE + _BARS + 2 * _MARGIN
    rows = [_draw_row(span, number, place) for number, span in enumerate(spans)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13">',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#cbd5e1"/>',
            *rows,
            "</svg>\n",
        ]
    )


def _draw_row(span: dict[str, Any], number: int, place: dict[float, float]) -> str:
    top = _MARGIN + number * _ROW
    left = _MARGIN + 18 * span["depth"]
    colour = _COLOURS.get(span["record"] or "", _OTHER)
    begin, end = place[span["start_ms"]], place[span["end_ms"]]
    x = _MARGIN + _TREE + begin * _BARS
    call = f'<tspan fill="#94a3b8"> #{escape(span["call"])}</tspan>' if span["call"] else ""
    return (
        f'<rect x="{left}" y="{top + 5}" width="4" height="{_ROW - 10}" fill="{colour}"/>'
        f'<text x="{left + 11}" y="{top + 16}" fill="#0f172a">{escape(span["name"])}{call}</text>'
        f'<rect x="{x:.1f}" y="{top + 6}" width="{max((end - begin) * _BARS, 4):.1f}" '
        f'height="{_ROW - 12}" rx="3" fill="{colour}"/>'
    )
