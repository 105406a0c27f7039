"""Numbers -> small SVG drawings.

Horizontal places are percentages, so a drawing fills any width; colours are classes of the style
sheet, and no attribute holds style, which the page's policy forbids. Text of data is escaped here.
"""

from collections.abc import Sequence

from markupsafe import Markup

from starpo_trace.look.funnel import Funnel, Stage
from starpo_trace.look.numbers import Distribution

_BAR_HEIGHT = 30
_ROW_HEIGHT = 22


def draw_stage(stage: Stage) -> Markup:
    """A stage as one bar, divided."""
    body, start = Markup(), 0.0
    for share in stage.shares:
        width = 100 * share.count / stage.total if stage.total else 0.0
        if share.count:
            body += Markup(
                '<rect class="seg {}" x="{}%" y="0" width="{}%" height="{}">'
                "<title>{}: {}</title></rect>"
            ).format(
                share.tone, round(start, 3), max(round(width, 3), 0.15), _BAR_HEIGHT, share.name,
                f"{share.count:,}",
            )  # fmt: skip
        start += width
    label = f"{stage.total:,} {stage.title}: " + ", ".join(
        f"{share.count:,} {share.name}" for share in stage.shares
    )
    return _wrap(body, height=_BAR_HEIGHT, label=label, css="stage-bar")


def draw_wedges(funnel: Funnel) -> list[Markup]:
    """Between two stages: what goes on widens to the whole of the next bar."""
    shapes = []
    for stage in funnel.stages[:-1]:
        kept = round(1000 * stage.num_kept / stage.total, 1) if stage.total else 0
        shapes.append(
            Markup(
                '<svg class="wedge" width="100%" height="100%" viewBox="0 0 1000 100" '
                'preserveAspectRatio="none" aria-hidden="true">'
                '<polygon points="0,0 {},0 1000,100 0,100"/></svg>'
            ).format(kept)
        )
    return shapes


def draw_histogram(values: Distribution, *, label: str, height: int = 132) -> Markup:
    """Bars with their counts above them."""
    counts, labels = values.counts, values.bins.labels
    width, tallest = 100 / max(len(counts), 1), max([*counts, 1])
    body = Markup()
    for place, (count, name) in enumerate(zip(counts, labels, strict=True)):
        tall = max(round((height - 20) * count / tallest, 1), 2.0 if count else 0.0)
        middle = round((place + 0.5) * width, 2)
        thick = min(0.82 * width, 16.0)
        body += Markup(
            '<rect class="bar" x="{}%" y="{}" width="{}%" height="{}" rx="2"><title>{}: {}</title>'
            "</rect>"
        ).format(
            round(middle - thick / 2, 2), round(height - tall, 1), round(thick, 2), tall, name,
            f"{count:,}",
        )  # fmt: skip
        if count:
            body += Markup('<text x="{}%" y="{}" text-anchor="middle">{}</text>').format(
                middle, round(height - tall - 5, 1), _shorten(count)
            )
    body += Markup('<line class="base" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(height)
    described = ", ".join(f"{n}: {c:,}" for n, c in zip(labels, counts, strict=True) if c)
    return _wrap(body, height=height, label=f"{label}: {described}", css="chart")


def draw_strip(values: Distribution, *, label: str) -> Markup:
    """The same, small enough for a table row."""
    counts = values.counts
    width, tallest = 100 / max(len(counts), 1), max([*counts, 1])
    body = Markup('<line class="base" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(_ROW_HEIGHT)
    for place, (count, name) in enumerate(zip(counts, values.bins.labels, strict=True)):
        tall = max(round((_ROW_HEIGHT - 2) * count / tallest, 1), 1.5 if count else 0.0)
        thick = min(0.8 * width, 12.0)
        body += Markup(
            '<rect class="bar" x="{}%" y="{}" width="{}%" height="{}"><title>{}: {}</title></rect>'
        ).format(
            round((place + 0.5) * width - thick / 2, 2), round(_ROW_HEIGHT - tall, 1),
            round(thick, 2), tall, name, f"{count:,}",
        )  # fmt: skip
    return _wrap(body, height=_ROW_HEIGHT, label=label, css="chart strip")


def draw_shares(shares: Sequence[tuple[str, int]], *, label: str, height: int = 14) -> Markup:
    """Parts of a whole as one bar: (css class, count)."""
    total, start, body = sum(count for _, count in shares), 0.0, Markup()
    for css, count in shares:
        width = 100 * count / total if total else 0.0
        if count:
            body += Markup(
                '<rect class="seg {}" x="{}%" y="0" width="{}%" height="{}"><title>{}: {}</title>'
                "</rect>"
            ).format(css, round(start, 2), round(width, 2), height, css, f"{count:,}")
        start += width
    return _wrap(body, height=height, label=label, css="shares")


def _shorten(count: int) -> str:
    """A count in four characters or less, as a bar has no room for more.

    >>> [_shorten(n) for n in (999, 1234, 45678, 3456789)]
    ['999', '1.2k', '46k', '3.5M']
    """
    for unit, name in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            share = count / unit
            return f"{share:.1f}{name}" if share < 10 else f"{share:.0f}{name}"
    return str(count)


def _wrap(body: Markup, *, height: int, label: str, css: str) -> Markup:
    return Markup(
        '<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(css, height, label, body)
