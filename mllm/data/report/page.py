"""The page: tables with bars, histograms as inline SVG, samples with thumbnails. Nothing is fetched, all text is escaped."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from mllm.conversation.schema import Sample
from mllm.data.report.survey import Survey
from mllm.errors import UserError
from mllm.files import write_text_atomically
from mllm.media.decode import read_image
from mllm.media.remote import data_url

BY = "mllm data report"
ROWS = 25
FIRST = 4  # samples that stand at the top
THUMBNAIL_PX = 160
SHOWN_CHARACTERS = 600
WORD_EDGES = (1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640)
SIDE_EDGES = (64, 128, 224, 336, 448, 640, 1024, 2048, 4096)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fafafa}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .7rem;text-align:left;border-bottom:1px solid #e2e2e2}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.bar{display:inline-block;height:.7rem;background:#4a78b5}
.lost{background:#b3563f}.two{display:flex;flex-wrap:wrap;gap:2.5rem}
.two>*{max-width:100%;overflow-x:auto}svg{max-width:100%;height:auto}.grid{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}.card{background:#fff;border:1px solid #ddd;border-radius:.4rem;
padding:.6rem;font-size:13px;overflow-wrap:anywhere}.card img{display:block;max-width:100%;margin:0 auto .4rem}
.card b{color:#2a5d8f}small{color:#666}svg text{font:11px system-ui,sans-serif;fill:#444}
.funnel{width:min(320px,40vw);white-space:nowrap;line-height:1}td{overflow-wrap:anywhere}
@media(max-width:600px){body{margin:1rem auto}td,th{padding:.15rem .35rem}svg text{font-size:14px}}
"""


def write_page(path: Path, title: str, survey: Survey) -> None:
    """Write the report of a survey to `path`."""
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{_summary(survey)}</p>{_cards(survey.shown[:FIRST])}<div class=two>"]
    for name, counts in (("source", survey.sources), ("kind", survey.kinds), ("script", survey.scripts)):
        parts.append(f"<section><h2>by {name}</h2>{_bars(counts)}</section>")
    parts.append("</div><div class=two>")
    parts.append(f"<section><h2>words of an answer</h2>{histogram(survey.words, WORD_EDGES)}</section>")
    parts.append(f"<section><h2>turns</h2>{histogram(survey.turns, tuple(range(1, 11)))}</section>")
    for name, index in (("height", 0), ("width", 1)):
        sizes = Counter(side[index] for side in survey.sides)
        parts.append(f"<section><h2>image {name} in px</h2>{histogram(sizes, SIDE_EDGES)}</section>")
    parts.append(f"</div>{_balance(survey)}{_overlap(survey)}")
    for name, funnel in survey.funnels.items():
        parts.append(f"<h2>losses of the synthesis</h2><p><small>{escape(name)}</small></p>{_funnel(funnel)}")
    if survey.shown[FIRST:]:
        parts.append(f"<h2>more samples</h2>{_cards(survey.shown[FIRST:])}")
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    write_text_atomically(path, head + "".join(parts) + "</html>\n", BY)


def _summary(survey: Survey) -> str:
    text = f"{survey.samples:,} samples, {survey.without_image:,} without an image"
    return text + (f"; <b>{survey.unreadable:,} records or images can't be read</b>" if survey.unreadable else "")


def _bars(counts: Mapping[str, int]) -> str:
    total, most = sum(counts.values()) or 1, max(counts.values(), default=1)
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    cells = [
        f"<tr><td>{escape(name)}</td><td class=n>{count:,}</td><td class=n>{100 * count / total:.1f} %</td>"
        f"<td><span class=bar style='width:{140 * count / most:.0f}px'></span></td></tr>"
        for name, count in rows[:ROWS]
    ]
    rest = f"<tr><td>{len(rows) - ROWS:,} more</td></tr>" if len(rows) > ROWS else ""
    return f"<table>{''.join(cells)}{rest}</table>"


def histogram(counts: Mapping[int, int], edges: tuple[int, ...]) -> str:
    """An SVG of how many values lie below the first edge, from each edge to the next, and from the last on."""
    bins = [0] * (len(edges) + 1)
    for value, count in counts.items():
        bins[sum(value >= edge for edge in edges)] += count
    labels = [f"<{edges[0]}", *(f"{edge}–" for edge in edges)]
    most, step = max([*bins, 1]), 42
    bars = "".join(
        f"<rect x='{n * step + 4}' y='{120 - 100 * count / most:.1f}' width='{step - 8}' height='{100 * count / most:.1f}' "
        f"fill='#4a78b5'/><text x='{n * step + step / 2}' y='134' text-anchor='middle'>{escape(label)}</text>"
        f"<text x='{n * step + step / 2}' y='{116 - 100 * count / most:.1f}' text-anchor='middle'>{count:,}</text>"
        for n, (count, label) in enumerate(zip(bins, labels, strict=True))
    )
    return f"<svg viewBox='0 0 {len(bins) * step} 140' width='{len(bins) * step}' role=img>{bars}</svg>"


def _balance(survey: Survey) -> str:
    total = sum(survey.yes_no.values(), Counter[str]())
    parts = [
        f"<h2>balance of answers</h2><div class=two><section><h3>short answers</h3>{_bars(survey.answers)}</section>"
    ]
    if total:
        lopsided = sorted(survey.yes_no.items(), key=lambda item: (-abs(item[1]["yes"] - item[1]["no"]), item[0]))
        rows = "".join(
            f"<tr><td>{escape(text[:120])}</td><td class=n>{n['yes']:,}</td><td class=n>{n['no']:,}</td></tr>"
            for text, n in lopsided[:10]
        )
        parts.append(
            f"<section><h3>yes {total['yes']:,}, no {total['no']:,}</h3><p>The least balanced questions:</p>"
            f"<table><tr><th>question</th><th>yes</th><th>no</th></tr>{rows}</table></section>"
        )
    return "".join(parts) + "</div>"


def _overlap(survey: Survey) -> str:
    if not survey.overlap:
        return ""
    percent = Counter(round(100 * share) for share in survey.overlap)
    return (
        "<h2>caption and instruction</h2><p>Percent of an answer's words that captions of the same image have, mean "
        f"{100 * sum(survey.overlap) / len(survey.overlap):.0f}:</p>{histogram(percent, tuple(range(10, 100, 10)))}"
    )


def _funnel(funnel: Mapping[str, int]) -> str:
    left = total = sum(funnel.values()) or 1
    rows = []
    for name, count in funnel.items():
        if name != "written":
            left -= count
        kept, lost = 100 * left / total, 0 if name == "written" else 100 * count / total
        bars = (
            f"<span class=bar style='width:{kept:.1f}%'></span><span class='bar lost' style='width:{lost:.1f}%'></span>"
        )
        rows.append(
            f"<tr><td>{escape(name)}</td><td class=n>{count:,}</td><td><div class=funnel>{bars}</div></td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _cards(samples: Sequence[Sample]) -> str:
    return f"<div class=grid>{''.join(map(_card, samples))}</div>"


def _card(sample: Sample) -> str:
    pictures = "".join(_thumbnail(image) for image in sample.images[:2])
    turns = "".join(
        f"<p><b>{message.role}</b> {escape(message.text[:SHOWN_CHARACTERS])}"
        f"{'…' if len(message.text) > SHOWN_CHARACTERS else ''}</p>"
        for message in sample.messages[:8]
    )
    return f"<div class=card>{pictures}{turns}<small>{escape(sample.id)} · {escape(sample.kind)}</small></div>"


def _thumbnail(image: str) -> str:
    try:
        picture = read_image(image)
    except UserError as error:
        return f"<p><i>{escape(str(error))}</i></p>"
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"<img alt='' src='{data_url(buffer.getvalue(), 'image/jpeg')}'>"
