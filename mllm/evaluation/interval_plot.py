"""Scores with their intervals as a small drawing: under each type, a dot and a whisker for each condition."""

from collections.abc import Sequence
from html import escape

from mllm.evaluation.runner import Score

LABEL_PX, PLOT_PX, ROW_PX, MARGIN_PX = 76, 370, 18, 24
COLOURS = {"model": "#2d5c9a", "withheld": "#b3372f", "swapped": "#c98a2b", "majority": "#777"}
MAX_TYPES = 24


def draw_intervals(name: str, entries: Sequence[Score]) -> str:
    """An SVG figure of the first types, on an axis from 0 to 100 %, or to the highest bound above."""
    kinds = list(dict.fromkeys(entry.type for entry in entries))[:MAX_TYPES]
    shown = [entry for kind in kinds for entry in entries if entry.type == kind]
    top = max(1.0, *(entry.high for entry in shown))
    rows, y = [], MARGIN_PX + ROW_PX / 2
    for number, entry in enumerate(shown):
        if number == 0 or entry.type != shown[number - 1].type:
            rows.append(f"<text x=0 y={y + 4:.1f} font-size=12 font-weight=600>{escape(entry.type)}</text>")
            y += ROW_PX
        low, middle, high = (LABEL_PX + PLOT_PX * value / top for value in (entry.low, entry.score, entry.high))
        colour = COLOURS.get(entry.condition, "#333")
        rows.append(
            f"<text x={LABEL_PX - 8} y={y + 4:.1f} text-anchor=end font-size=12>{escape(entry.condition)}</text>"
            f"<line x1={low:.1f} x2={high:.1f} y1={y:.1f} y2={y:.1f} stroke='{colour}' stroke-width=2 />"
            f"<circle cx={middle:.1f} cy={y:.1f} r=4 fill='{colour}'/>"
        )
        y += ROW_PX
    height = round(y - ROW_PX / 2) + MARGIN_PX
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
        f"<text x={x:.1f} y={bottom + 15} font-size=12 text-anchor=middle>{100 * share * top:.0f}</text>"
    )
