"""Charts over time as SVG, without a library: panels above each other, each with its own lines."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

#: Pixels: the chart's width, a panel's height, room for numbers at the left, for titles above, between panels.
WIDTH, HEIGHT, LEFT, TOP, GAP = 860, 180, 60, 28, 46

#: Colours that can be told apart by people who see fewer: from Okabe and Ito's set.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


class Line(msgspec.Struct):
    """One line of a panel: its name, and a value at each time; `steps`: it keeps a value until the next time."""

    name: str
    values: Sequence[float]
    steps: bool = False


class Panel(msgspec.Struct):
    """Lines that share an axis."""

    title: str
    lines: list[Line]


def chart(times: Sequence[float], panels: list[Panel], marks: list[tuple[float, str]]) -> str:
    """Draw panels over the same times.

    Args:
        times: seconds.
        panels: from top to bottom; each line has a value for each time.
        marks: times that are marked by a vertical line, with a word for each.
    """
    last = max(times)

    def x(time: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * time / last

    height = len(panels) * (HEIGHT + GAP) + TOP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for n, panel in enumerate(panels):
        top = TOP + n * (HEIGHT + GAP)
        most = max(max(line.values) for line in panel.lines) or 1.0

        def y(value: float, top: int = top, most: float = most) -> float:
            return top + HEIGHT - HEIGHT * value / most

        out.append(f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{escape(panel.title)}</text>')
        for share in (0.0, 0.5, 1.0):
            at = y(most * share)
            out.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{most * share:,.4g}</text>')
        for time, word in marks:
            at = x(time)
            dashes = 'stroke="#999" stroke-dasharray="3 3"'
            out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + HEIGHT}" {dashes}/>')
            if n == 0:
                out.append(f'<text x="{at + 4:.1f}" y="{top + 12}" fill="#666">{escape(word)}</text>')
        for colour, line in zip(COLOURS, panel.lines, strict=False):
            points: list[str] = []
            for time, value in zip(times, line.values, strict=True):
                if line.steps and points:
                    points.append(f"{x(time):.1f},{points[-1].split(',')[1]}")
                points.append(f"{x(time):.1f},{y(value):.1f}")
            out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{" ".join(points)}"/>')
        names = [
            f'<tspan fill="{colour}">{escape(line.name)}  </tspan>' for colour, line in zip(COLOURS, panel.lines, strict=False)
        ]
        out.append(f'<text x="{WIDTH - 20}" y="{top - 10}" text-anchor="end" xml:space="preserve">{"".join(names)}</text>')
    for tenth in range(0, 11, 2):
        time = last * tenth / 10
        out.append(f'<text x="{x(time):.1f}" y="{height - 22}" text-anchor="middle">{time:.0f} s</text>')
    return "\n".join([*out, "</svg>", ""])
