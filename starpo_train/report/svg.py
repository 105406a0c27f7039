"""Numbers -> small SVG drawings, as pure functions.

Horizontal positions are percentages, so a drawing fills any width without its marks being
stretched; colours are classes that the page's style sheet defines for light and dark. Text that
comes from data is escaped here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

ROW_HEIGHT = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values from `low` to `high` -> 0% to 100% of the width."""

    low: float
    """Value at the left edge."""
    high: float
    """Value at the right edge."""

    def place(self, value: float) -> float:
        """Percentage of the width, kept inside the drawing."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def wrap_svg(body: Markup, *, height: int, label: str, css: str = "") -> Markup:
    """Shapes -> an `<svg>` as wide as its container, named for screen readers."""
    return Markup(
        '<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(css, height, label, body)


def draw_interval(
    *,
    low: float | None,
    value: float,
    high: float | None,
    scale: Scale,
    middle: float,
    css: str,
    words: str = "",
) -> Markup:
    """A point with its interval at height `middle`; an end off the scale becomes an arrow.

    `words` stand beside the arrow where the point itself is off the scale.
    """
    start = 0.0 if low is None else scale.place(low)
    end = 100.0 if high is None else scale.place(high)
    parts = [
        Markup('<line class="whisker" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(
            start, end, middle, middle
        )
    ]
    marks: list[tuple[float, str]] = []
    if low is None or low < scale.low:
        marks.append((start, "M0 0l7 -5v10z"))  # an arrow whose tip is here
    elif low <= scale.high:
        marks.append((start, "M-1 -5h2v10h-2z"))
    if high is None or high > scale.high:
        marks.append((end, "M0 0l-7 -5v10z"))
    elif high >= scale.low:
        marks.append((end, "M-1 -5h2v10h-2z"))
    parts += [
        Markup('<svg x="{}%" y="{}" overflow="visible"><path class="cap" d="{}"/></svg>').format(
            place, middle, shape
        )
        for place, shape in marks
    ]
    if not scale.low <= value <= scale.high:
        if not words:
            return Markup('<g class="{}">{}</g>').format(css, Markup().join(parts))
        is_right = value > scale.high
        parts.append(
            Markup(
                '<text class="beyond-words" x="{}%" y="{}" dx="{}" text-anchor="{}">{}</text>'
            ).format(
                100 if is_right else 0,
                middle + 4,
                -14 if is_right else 14,
                "end" if is_right else "start",
                words,
            )
        )
        return Markup('<g class="{}">{}</g>').format(css, Markup().join(parts))
    parts.append(
        Markup('<circle class="point" cx="{}%" cy="{}" r="5"/>').format(scale.place(value), middle)
    )
    return Markup('<g class="{}">{}</g>').format(css, Markup().join(parts))


def draw_forest_row(
    *,
    low: float | None,
    value: float | None,
    high: float | None,
    scale: Scale,
    css: str,
    label: str,
) -> Markup:
    """One guardrail in units of its margin: -1 is the margin, 0 no change, right is better."""
    margin, zero = scale.place(-1.0), scale.place(0.0)
    body = Markup(
        '<rect class="beyond" x="0" y="0" width="{}%" height="{}"/>'
        '<line class="margin" x1="{}%" x2="{}%" y1="0" y2="{}"/>'
        '<line class="zero" x1="{}%" x2="{}%" y1="0" y2="{}"/>'
    ).format(margin, ROW_HEIGHT, margin, margin, ROW_HEIGHT, zero, zero, ROW_HEIGHT)
    if value is not None:
        body += draw_interval(
            low=low,
            value=value,
            high=high,
            scale=scale,
            middle=ROW_HEIGHT / 2,
            css=css,
            words=f"{abs(value):.1f} margins",
        )
    return wrap_svg(body, height=ROW_HEIGHT, label=label, css="forest-row")


def draw_forest_axis(scale: Scale) -> Markup:
    """Words above the forest plot, at the places they speak of."""
    margin, zero = scale.place(-1.0), scale.place(0.0)
    body = Markup(
        '<text class="axis-bad" x="{}%" y="12" text-anchor="end">margin</text>'
        '<text class="axis" x="{}%" y="12">no change</text>'
        '<text class="axis" x="100%" y="12" text-anchor="end">better →</text>'
    ).format(margin, zero)
    return wrap_svg(body, height=16, label="Left of the margin line is unacceptable")


def draw_rates(
    rows: Sequence[tuple[float | None, float | None, float | None, str]], *, label: str
) -> Markup:
    """Rates in [0, 1] with intervals, one below the other: (low, value, high, css)."""
    scale, step = Scale(low=0.0, high=1.0), 16
    height = step * max(1, len(rows)) + 4
    parts = [
        Markup('<line class="grid" x1="{}%" x2="{}%" y1="0" y2="{}"/>').format(x, x, height)
        for x in (0, 25, 50, 75, 100)
    ]
    for index, (low, value, high, css) in enumerate(rows):
        if value is not None:
            middle = index * step + step / 2 + 2
            parts.append(
                draw_interval(low=low, value=value, high=high, scale=scale, middle=middle, css=css)
            )
    return wrap_svg(Markup().join(parts), height=height, label=label, css="rates")


def draw_curve(
    points: Sequence[tuple[float, float]],
    *,
    label: str,
    height: int = 96,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """A line through (x, y) points, its area filled, the last point marked.

    `marks` are upright lines, (x, what it is); those outside the points' range are left out. The inner drawing is stretched to the width; strokes keep their weight.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    span, width = (high - low) or 1.0, (max(xs) - min(xs)) or 1.0
    places = [
        (
            round(1000 * (x - min(xs)) / width, 1) if len(points) > 1 else 500.0,
            round(92 - 84 * ((y - low) / span if high > low else 0.5), 1),
        )
        for x, y in points
    ]
    line = " ".join(f"{x},{y}" for x, y in places)
    first, last = places[0], places[-1]
    body = Markup(
        '<line class="grid" x1="0" x2="100%" y1="8%" y2="8%"/>'
        '<line class="grid" x1="0" x2="100%" y1="92%" y2="92%"/>'
        '<svg width="100%" height="{}" viewBox="0 0 1000 100" preserveAspectRatio="none">'
        '<polygon class="area" points="{},100 {} {},100"/>'
        '<polyline class="curve" points="{}" vector-effect="non-scaling-stroke"/></svg>'
        '<circle class="point" cx="{}%" cy="{}%" r="3.5"/>'
    ).format(height, first[0], line, last[0], line, last[0] / 10, last[1])
    for x, name in marks:
        if min(xs) <= x <= max(xs):
            place = round(100 * (x - min(xs)) / width, 2) if len(points) > 1 else 50.0
            body += Markup(
                '<line class="margin" x1="{}%" x2="{}%" y1="0" y2="100%"><title>{}</title></line>'
            ).format(place, place, name)
    return wrap_svg(body, height=height, label=label, css="chart")


def draw_histogram(counts: Sequence[int], *, label: str, height: int = 120) -> Markup:
    """Bars of equal width, the tallest filling the height, each with its count on hover."""
    tallest, width = max([*counts, 1]), 100 / max(1, len(counts))
    parts = []
    for index, count in enumerate(counts):
        tall = max(round((height - 18) * count / tallest, 1), 2.0 if count else 0.0)
        parts.append(
            Markup(
                '<rect class="bar" x="{}%" y="{}" width="{}%" height="{}" rx="2">'
                "<title>{}</title></rect>"
            ).format(
                round(index * width + 0.15 * width, 2),
                round(height - tall, 1),
                round(0.7 * width, 2),
                tall,
                count,
            )
        )
        if count:
            parts.append(
                Markup('<text class="axis" x="{}%" y="{}" text-anchor="middle">{}</text>').format(
                    round((index + 0.5) * width, 2), round(height - tall - 4, 1), count
                )
            )
    return wrap_svg(Markup().join(parts), height=height, label=label, css="chart")


def draw_shares(shares: Sequence[tuple[float, str, str]], *, label: str) -> Markup:
    """Parts of a whole as one bar: (share, css, name)."""
    parts, start = [], 0.0
    for share, css, name in shares:
        parts.append(
            Markup(
                '<rect class="{}" x="{}%" y="0" width="{}%" height="18"><title>{}</title></rect>'
            ).format(css, round(100 * start, 2), round(100 * share, 2), escape(name))
        )
        start += share
    return wrap_svg(Markup().join(parts), height=18, label=label, css="shares")


def draw_meter(share: float, *, label: str, css: str = "meter") -> Markup:
    """A share of one, as a filled track."""
    body = Markup(
        '<rect class="track" x="0" y="2" width="100%" height="10" rx="3"/>'
        '<rect class="fill" x="0" y="2" width="{}%" height="10" rx="3"/>'
    ).format(round(100 * min(1.0, max(0.0, share)), 2))
    return wrap_svg(body, height=14, label=label, css=css)


def draw_spread(
    shares: Sequence[float],
    *,
    marks: Sequence[tuple[float, str]],
    css: str,
    label: str,
    height: int = 54,
) -> Markup:
    """Bars that touch, 1 the full height, and upright marks (percentage of the width, name)."""
    width = 100 / max(1, len(shares))
    parts = [
        Markup('<rect class="spread" x="{}%" y="{}" width="{}%" height="{}"/>').format(
            round(index * width + 0.06 * width, 2),
            round(height - (tall := max(round(height * share, 1), 1.5)), 1),
            round(0.88 * width, 2),
            tall,
        )
        for index, share in enumerate(shares)
        if share
    ]
    parts.append(
        Markup('<line class="floor" x1="0" x2="100%" y1="{}" y2="{}"/>').format(height, height)
    )
    parts += [
        Markup(
            '<line class="at {}" x1="{}%" x2="{}%" y1="-3" y2="{}"><title>{}</title></line>'
        ).format(name, place, place, height, name)
        for place, name in marks
    ]
    return wrap_svg(Markup().join(parts), height=height, label=label, css=f"spreads {css}")


def draw_difference(
    *, low: float | None, value: float, high: float | None, reach: float, label: str
) -> Markup:
    """A difference with its interval around an upright zero; `reach` is both ends of the axis."""
    scale = Scale(low=-reach, high=reach)
    css = (
        "pass"
        if low is not None and low > 0
        else "fail"
        if high is not None and high < 0
        else "reported"
    )
    body = Markup('<line class="zero" x1="50%" x2="50%" y1="0" y2="{}"/>').format(ROW_HEIGHT)
    body += draw_interval(
        low=low, value=value, high=high, scale=scale, middle=ROW_HEIGHT / 2, css=css
    )
    return wrap_svg(body, height=ROW_HEIGHT, label=label, css="difference")
