"""Scores with their intervals as a small drawing: a dot and a whisker for each condition of each type."""

from collections.abc import Sequence
from html import escape

from mllm.evaluation.runner import Score

LABEL_PX, PLOT_PX, ROW_PX, MARGIN_PX = 190, 420, 17, 24
COLOURS = {"model": "#2d5c9a", "withheld": "#b3372f", "swapped": "#c98a2b", "majority": "#777"}
MAX_TYPES = 24


def draw_intervals(name: str, entries: Sequence[Score]) -> str:
    """An SVG figure of the first types, on an axis from 0 to 100 %, or to the highest bound above."""
    kinds = list(dict.fromkeys(entry.type for entry in entries))[:MAX_TYPES]
    shown = [entry for kind in kinds for entry in entries if entry.type == kind]
    top = max(1.0, *(entry.high for entry in shown))
    height = ROW_PX * len(shown) + 2 * MARGIN_PX
    rows, last = [], None
    for number, entry in enumerate(shown):
        y = MARGIN_PX + ROW_PX * (number + 0.5)
        label = entry.condition if entry.type == last else f"{entry.type}: {entry.condition}"
        last = entry.type
        low, middle, high = (LABEL_PX + PLOT_PX * value / top for value in (entry.low, entry.score, entry.high))
        colour = COLOURS.get(entry.condition, "#333")
        rows.append(
            f"<text x={LABEL_PX - 8} y={y + 4:.1f} text-anchor=end font-size=11>{escape(label)}</text>"
            f"<line x1={low:.1f} x2={high:.1f} y1={y:.1f} y2={y:.1f} stroke='{colour}' stroke-width=2 />"
            f"<circle cx={middle:.1f} cy={y:.1f} r=4 fill='{colour}'/>"
        )
    ticks = "".join(_tick(share, top, height) for share in (0, 0.25, 0.5, 0.75, 1))
    width = LABEL_PX + PLOT_PX + MARGIN_PX
    return (
        f"<figure><svg viewBox='0 0 {width} {height}' width={width} role=img "
        f"aria-label='intervals of {escape(name, quote=True)}'>{ticks}{''.join(rows)}</svg></figure>"
    )


def _tick(share: float, top: float, height: int) -> str:
    x, bottom = LABEL_PX + PLOT_PX * share, height - MARGIN_PX
    return (
        f"<line x1={x:.1f} x2={x:.1f} y1={MARGIN_PX} y2={bottom} stroke='#ddd'/>"
        f"<text x={x:.1f} y={bottom + 14} font-size=11 text-anchor=middle>{100 * share * top:.0f}</text>"
    )
