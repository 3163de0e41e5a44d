"""The pictures of a report that show what confidences are worth: how often they are right, and what abstaining saves."""

from collections.abc import Sequence
from html import escape

import numpy as np

from mllm.evaluation.confidences import judged_answers
from mllm.evaluation.metrics.ece import calibration_bins
from mllm.evaluation.reliability import BINS, Judged
from mllm.evaluation.scoring import Answer
from mllm.evaluation.selective import area_under_risk, risk_curve

SIDE_PX, LEFT_PX, TOP_PX, BOTTOM_PX = 240, 40, 12, 40
COUNTS_PX = 44
RAW, CALIBRATED = "#2d5c9a", "#c0561f"
MOST_POINTS = 200
NAMES = {RAW: "as the model says", CALIBRATED: "calibrated"}


def draw_confidences(name: str, answers: Sequence[Answer]) -> str:
    """Two figures beside each other, as the model says it and calibrated; "" where its answers have no confidences."""
    raw, better = (judged_answers(name, answers, is_calibrated) for is_calibrated in (False, True))
    if raw is None:
        return ""
    shown = [(RAW, raw), *([(CALIBRATED, better)] if better is not None else [])]
    return f"<div class=row>{_reliability(name, shown)}{_risk_coverage(name, shown)}</div>"


def _reliability(name: str, shown: Sequence[tuple[str, Judged]]) -> str:
    """The share of right answers over confidence, a dot a bin, and below it how many answers a bin has."""
    parts = [_GRID, _line([(0.0, 0.0), (1.0, 1.0)], "#999", " stroke-dasharray='4 4'")]
    for number, (colour, judged) in enumerate(shown):
        bins = calibration_bins(judged.confidences.tolist(), judged.right.tolist(), BINS)
        parts.append(_line([(b.confidence, b.accuracy) for b in bins], colour))
        parts += [f"<circle cx={_x(b.confidence):.1f} cy={_y(b.accuracy):.1f} r=3.5 fill='{colour}'/>" for b in bins]
        most, width = max(b.count for b in bins), SIDE_PX / BINS / len(shown)
        for b in bins:
            height = (COUNTS_PX - 6) * b.count / most
            left = min(_x(b.low), _x(1.0) - SIDE_PX / BINS) + number * width
            parts.append(
                f"<rect x={left + 0.5:.1f} y={_floor() + COUNTS_PX - height:.1f} width={width - 1:.1f} height={height:.1f} "
                f"fill='{colour}' fill-opacity=0.55 />"
            )
    parts += [_axis("confidence; below: number of answers", COUNTS_PX), _upright(1.0)]
    return _figure(f"reliability of {name}", "Right answers, %, by confidence, %", shown, parts, COUNTS_PX)


def _risk_coverage(name: str, shown: Sequence[tuple[str, Judged]]) -> str:
    """The mean loss of the answers that are given, over how many are, from the most confident on."""
    curves = [(colour, judged, risk_curve(judged.confidences, judged.gains)) for colour, judged in shown]
    _, first = shown[0]
    best = np.cumsum(np.sort(1 - first.gains)) / np.arange(1, len(first) + 1)
    top = max(0.05, float(max(curve.risks.max() for _, _, curve in curves)))
    places = _some(len(best))
    parts = [
        _GRID,
        _line([((i + 1) / len(best), best[i] / top) for i in places], "#999", " stroke-dasharray='4 4'"),
    ]
    for colour, _, curve in curves:
        points = [(curve.coverages[i], curve.risks[i] / top) for i in _some(len(curve.risks))]
        parts.append(_line(points, colour))
        parts.append(f"<circle cx={_x(points[0][0]):.1f} cy={_y(points[0][1]):.1f} r=3 fill='{colour}'/>")
    parts += [_axis("answers that are given, %", 0), _upright(top)]
    areas = ", ".join(f"{area_under_risk(judged.confidences, judged.gains):.3f}" for _, judged, _ in curves)
    return _figure(
        f"risk and coverage of {name}", f"Loss of what is given, % (AURC {areas}); dashed: best order", shown, parts, 0
    )


def _some(count: int) -> list[int]:
    """At most MOST_POINTS indices of `count`, the first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int).tolist()))


def _x(share: float) -> float:
    return LEFT_PX + SIDE_PX * share


def _floor() -> float:
    return TOP_PX + SIDE_PX


def _y(share: float) -> float:
    return _floor() - SIDE_PX * share


def _line(points: Sequence[tuple[float, float]], colour: str, more: str = "") -> str:
    joined = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    return f"<polyline fill=none stroke='{colour}' stroke-width=2{more} points='{joined}'/>"


_GRID = "".join(
    f"<line x1={LEFT_PX} x2={LEFT_PX + SIDE_PX} y1={_y(s):.1f} y2={_y(s):.1f} stroke='#ddd'/>"
    for s in (0, 0.25, 0.5, 0.75, 1)
)


def _upright(top: float) -> str:
    return "".join(
        f"<text x={LEFT_PX - 5} y={_y(s) + 4:.1f} font-size=12 text-anchor=end>{_percent(s * top)}</text>"
        for s in (0, 0.5, 1)
    )


def _axis(label: str, below_px: float) -> str:
    y = _floor() + below_px
    ticks = "".join(
        f"<text x={_x(s):.1f} y={y + 15:.1f} font-size=12 text-anchor=middle>{_percent(s)}</text>" for s in (0, 0.5, 1)
    )
    return f"{ticks}<text x={_x(0.5):.1f} y={y + 32:.1f} font-size=12 text-anchor=middle>{escape(label)}</text>"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def _figure(label: str, title: str, shown: Sequence[tuple[str, Judged]], parts: Sequence[str], below_px: int) -> str:
    names = " · ".join(f"<b style='color:{colour}'>{NAMES[colour]}</b>" for colour, _ in shown)
    width, height = LEFT_PX + SIDE_PX + 16, TOP_PX + SIDE_PX + below_px + BOTTOM_PX
    return (
        f"<figure><figcaption>{escape(title)}<br><small>{names}</small></figcaption>"
        f"<svg viewBox='0 0 {width} {height}' width={width} role=img aria-label='{escape(label, quote=True)}'>"
        f"{''.join(parts)}</svg></figure>"
    )
