"""Two bar charts side by side as SVG: round trip and throughput, both on logarithmic scales."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.summary import IN_FLIGHT, Row

COLOURS = {"shmrpc": "#2a6f97", "handrolled": "#e07a3f", "grpc": "#8d99ae", "pyzmq": "#6a994e"}
LABEL_WIDTH, PANEL_WIDTH, GAP = 250, 360, 90
LINE_HEIGHT, TOP = 24, 60
MARGIN = 16


@dataclass(frozen=True)
class Panel:
    """One chart: where it begins, and a logarithmic scale from 1 to a power of ten."""

    title: str
    left: float
    decades: int

    def length(self, value: float) -> float:
        """Pixels from the left edge."""
        return PANEL_WIDTH * max(math.log10(value), 0.0) / self.decades


def panel(title: str, left: float, values: Sequence[float]) -> Panel:
    """A chart whose scale holds all values."""
    return Panel(title, left, max(math.ceil(math.log10(max(values))), 1))


def words(x: float, y: float, content: str, style: str = "") -> str:
    """A text element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(content)}</text>'


def frame(chart: Panel, rows: int) -> Iterator[str]:
    """The title and the lines of the scale."""
    yield words(chart.left, TOP - 28, chart.title, 'font-weight="bold"')
    bottom = TOP + rows * LINE_HEIGHT
    for power in range(chart.decades + 1):
        x = chart.left + chart.length(10.0**power)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="#ddd"/>'
        yield words(x, TOP - 10, f"{10**power}", 'fill="#666" text-anchor="middle" font-size="11"')


def bar(chart: Panel, y: float, value: float, colour: str, label: str) -> Iterator[str]:
    """One bar with its value behind it."""
    length = chart.length(value)
    height = LINE_HEIGHT - 8
    yield f'<rect x="{chart.left}" y="{y:.1f}" width="{length:.1f}" height="{height}" fill="{colour}"/>'
    yield words(chart.left + length + 5, y + height - 3, label, 'font-size="11"')


def draw(rows: Sequence[Row], caption: str) -> str:
    """The document; `caption` goes below the charts."""
    left = MARGIN + LABEL_WIDTH
    throughputs = [row.calls_per_s[IN_FLIGHT] / 1e3 for row in rows]
    latency = panel("round trip p50, us (less is better)", left, [row.p50_us for row in rows])
    throughput = panel(
        f"{IN_FLIGHT} in flight, thousand calls/s (more is better)", left + PANEL_WIDTH + GAP, throughputs
    )
    width = throughput.left + PANEL_WIDTH + GAP
    height = TOP + len(rows) * LINE_HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        ' font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        *frame(latency, len(rows)),
        *frame(throughput, len(rows)),
    ]
    for number, (row, rate) in enumerate(zip(rows, throughputs, strict=True)):
        y = TOP + number * LINE_HEIGHT
        colour = COLOURS[row.name.partition("/")[0]]
        parts.append(words(left - 8, y + LINE_HEIGHT - 11, row.name, 'text-anchor="end"'))
        parts += bar(latency, y, row.p50_us, colour, f"{row.p50_us:.1f}")
        parts += bar(throughput, y, rate, colour, f"{rate:.0f}")
    parts += [words(MARGIN, height - MARGIN / 2, caption, 'fill="#666" font-size="11"'), "</svg>"]
    return "\n".join(parts) + "\n"
