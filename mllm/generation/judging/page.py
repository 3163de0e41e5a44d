"""The page about generated pictures: figures, curves over guidance, what captions became, the nearest training images."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from mllm.generation.judging.drawn import Drawn
from mllm.generation.judging.judges import Verdict
from mllm.generation.judging.scores import Figure, Scored, verdicts_by_caption
from mllm.html import write_html
from mllm.media.data_url import thumbnail_url

THUMBNAIL_PX = 96
SHOWN_PX = 72
CAPTIONS = 24
PER_CAPTION = 8
CLOSEST = 12
CURVE_PX = (200, 420)
MARGIN_PX = 36
COLOURS = ("#2d5c9a", "#b3563f", "#2a7d3c", "#8a5ca8", "#b58a2b")
# What is right or wrong, by what is known to be: the rest are cosines and distances.
MARK_BY = ("both", "judge", "asked", "vqa_score")

MEANINGS = {
    "clip_t": "mean cosine of a picture and its caption; clip_score is 100 times it, where it is above 0",
    "r_precision": "share of pictures whose caption is nearer than all other candidates (r_candidates of them)",
    "diversity": "mean of 1 - cosine of two pictures of one caption",
    "clip_i": "mean cosine of a picture and the real images of its caption",
    "kid": "distance of two sets by a cubic kernel, of subsets; in brackets their standard deviation",
    "cmmd": "distance of two sets by a Gaussian kernel, times 1000 (the V-statistic, as published code has it)",
    "precision": "share of pictures in the neighbourhood of a real image; density: in how many, of five",
    "recall": "share of real images in the neighbourhood of a picture; coverage: with a picture in theirs",
    "nearest_training_cosine": "mean cosine of a picture and the training image that is most like it",
    "nearest_training_rms": "mean difference of its pixels from the nearest training image's, of 1",
    "copies": "share of pictures whose pixels differ by less than 2% from a training image's",
    "asked": "share of a picture's questions that the multimodal LLM answers right",
    "vqa_score": "probability that the multimodal LLM says yes to whether the picture shows its caption",
}


def write_page(
    path: Path,
    title: str,
    sets: Sequence[Scored],
    notes: Sequence[str],
    strips: Mapping[str, Sequence[Drawn]],
    diagnoses: Mapping[str, Mapping[str, float]],
    by: str,
) -> None:
    """Write the page. sets: rows of the table, in order. notes: sentences that stand at the top, marked.

    strips: further pictures by their heading, such as variations, interpolations and edits. diagnoses: figures of a feature
    space by what it is of.
    """
    body = [f"<p class=note>{escape(note)}</p>" for note in notes]
    body += [_table("figures", {one.title: one.figures for one in sets})]
    body += [_meanings(sets), _curves(sets)]
    if diagnoses:
        told = {name: {key: Figure(value) for key, value in own.items()} for name, own in diagnoses.items()}
        body.append(_table("the judge's feature space", told))
    for one in sets:
        body += [f"<h2>{escape(one.title)}</h2>", _grid(one.encoded.pictures, one.verdicts), _closest(one)]
    for heading, pictures in strips.items():
        body += [f"<h2>{escape(heading)}</h2>", _grid(pictures, ())]
    write_html(path, title, body, by)


def _table(heading: str, rows: Mapping[str, Mapping[str, Figure]]) -> str:
    """A row a figure and a column a set: there are more of the first."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    head = "".join(f"<th>{escape(title)}" for title in rows)
    lines = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}"
        + "".join(f"<td class=n>{_number(figures.get(name))}" for figures in rows.values())
        for name in names
    )
    return f"<h2>{escape(heading)}</h2><div class=scroll><table><tr><th>{head}{lines}</table></div>"


def _meanings(sets: Sequence[Scored]) -> str:
    """What the figures that are there mean; brackets without a word of theirs are 95% intervals over captions."""
    there = {name for one in sets for name in one.figures}
    lines = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}<td>{escape(meaning)}"
        for name, meaning in MEANINGS.items()
        if name in there
    )
    told = "<p><small>In brackets: 95% intervals, drawn over captions, unless the line says otherwise.</small></p>"
    return f"<details><summary>what they mean</summary>{told}<table>{lines}</table></details>"


def _number(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    value = f"{figure.value:,.0f}" if float(figure.value).is_integer() and figure.value > 1 else f"{figure.value:.3f}"
    return value if figure.low is None else f"{value} <small>({figure.low:.3f}–{figure.high:.3f})</small>"


def _curves(sets: Sequence[Scored]) -> str:
    """What is judged, and the diversity, over guidance, where sets of several guidances are there."""
    guided = {one.encoded.pictures[0].made.get("guidance"): one for one in sets}
    points = sorted((float(w), one) for w, one in guided.items() if isinstance(w, int | float))
    if len(points) < 2:
        return ""
    judged = [name for name in points[0][1].figures if points[0][1].verdicts and name in points[0][1].verdicts[0]]
    names = [*judged[: len(COLOURS) - 2], "clip_t", "diversity"]
    lines = {name: [(w, one.figures[name].value) for w, one in points if name in one.figures] for name in names}
    drawn = draw_lines({name: line for name, line in lines.items() if len(line) > 1}, "guidance")
    return f"<h2>over guidance</h2>{drawn}"


def draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]], across: str) -> str:
    """Draw named lines of (x, y) points, from 0 to at least 1 upwards, as an SVG figure with their names beside."""
    height, width = CURVE_PX
    every = [point for line in lines.values() for point in line]
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(0.0, *(y for _, y in every)), max(1.0, *(y for _, y in every))
    bottom, end = height - MARGIN_PX, width - MARGIN_PX

    def place(x: float, y: float) -> str:
        across_px = MARGIN_PX + (x - left) / ((right - left) or 1) * (end - MARGIN_PX)
        return f"{across_px:.1f},{bottom - (y - low) / (high - low) * (bottom - MARGIN_PX):.1f}"

    drawn = "".join(
        f"<polyline fill=none stroke='{colour}' stroke-width=2 points='{' '.join(place(*point) for point in line)}'/>"
        f"<text x={MARGIN_PX + 110 * number} y=14 font-size=12 fill='{colour}'>{escape(name)}</text>"
        for number, ((name, line), colour) in enumerate(zip(lines.items(), COLOURS, strict=False))
    )
    ticks = "".join(
        f"<text x={place(x, low).partition(',')[0]} y={bottom + 16} font-size=11 text-anchor=middle>{x:g}</text>"
        for x in sorted({x for x, _ in every})
    )
    return (
        f"<figure><svg viewBox='0 0 {width + 150} {height}' width={width + 150} role=img aria-label='{escape(across)}'>"
        f"<line x1={MARGIN_PX} y1={bottom} x2={end} y2={bottom} stroke='#bbb'/>"
        f"<text x=2 y={MARGIN_PX + 4} font-size=11>{high:.2g}</text><text x=2 y={bottom} font-size=11>{low:.2g}</text>"
        f"<text x={end + 8} y={bottom + 16} font-size=11>{escape(across)}</text>{ticks}{drawn}</svg></figure>"
    )


def _grid(pictures: Sequence[Drawn], verdicts: Sequence[Verdict]) -> str:
    """A row a caption; what is judged wrong has a red edge, what is right a green one."""
    rows: dict[str, list[str]] = {}
    for number, picture in enumerate(pictures):
        own = rows.setdefault(picture.caption, [])
        if len(own) < PER_CAPTION:
            own.append(_shown(picture, verdicts[number] if verdicts else {}))
    some = sorted(rows.items())[:CAPTIONS]
    means = verdicts_by_caption(pictures, verdicts)
    lines = "".join(
        f"<tr><td>{escape(caption)}<br><small>{_told(means.get(caption, {}))}</small><td>{''.join(images)}"
        for caption, images in some
    )
    more = f"<p><small>and {len(rows) - CAPTIONS:,} more captions</small></p>" if len(rows) > CAPTIONS else ""
    return f"<div class=scroll><table>{lines}</table></div>{more}"


def _told(verdict: Verdict) -> str:
    """A verdict in words, escaped."""
    return escape(", ".join(f"{name} {value:.2g}" for name, value in verdict.items()), quote=True)


def _shown(picture: Drawn, verdict: Verdict) -> str:
    mark = next((value for by in MARK_BY for name, value in verdict.items() if name.endswith(by)), None)
    edge = "" if mark is None else f";outline:3px solid {'#2a7d3c' if mark >= 0.5 else '#b3372f'}"
    return (
        f"<img src='{thumbnail_url(picture.image, THUMBNAIL_PX)}' width={SHOWN_PX} height={SHOWN_PX} "
        f"alt='{escape(picture.caption, quote=True)}' title='{_told(verdict)}' "
        f"style='object-fit:contain;margin:3px{edge}'>"
    )


def _closest(one: Scored) -> str:
    """The pictures that are most like a training image by pixels, each above that image."""
    told = sorted(zip(one.nearest, one.encoded.pictures, strict=False), key=lambda pair: pair[0].rms)[:CLOSEST]
    if not told:
        return ""
    cards = "".join(
        f"<div class=card><img src='{thumbnail_url(picture.image, THUMBNAIL_PX)}' alt=generated>"
        f"<img src='{thumbnail_url(near.by_pixels, THUMBNAIL_PX)}' alt='nearest in training'>"
        f"{'a copy: ' if near.is_copy else ''}pixels differ by {near.rms:.1%}, cosine {near.cosine:.3f}</div>"
        for near, picture in told
    )
    return (
        "<details><summary>the nearest training images</summary><p><small>above, the generated picture; below, the "
        f"training image that its pixels are nearest to</small></p><div class='grid small'>{cards}</div></details>"
    )


def figure_lines(one: Scored) -> Iterator[tuple[str, str]]:
    """(name, value with its interval) of each figure, as text for a terminal."""
    for name, figure in one.figures.items():
        yield name, _number(figure).replace("<small>", "").replace("</small>", "")
