"""The report as a page: tables with bars, histograms, samples with thumbnails; all text is escaped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mllm.conversation.pair import SIDES, PreferencePair
from mllm.conversation.schema import Sample, media_kinds
from mllm.data.answer_balance import guessed_share
from mllm.data.report.survey import Survey
from mllm.errors import ImageBudgetError, UserError
from mllm.html import draw_histogram, write_html
from mllm.media.data_url import frame_url, thumbnail_url
from mllm.media.visual import Size, Visual, VisualPlanner

BY = "mllm data report"
ROWS = 25
FIRST = 4  # samples that stand at the top
THUMBNAIL_PX = 160
SHOWN_CHARACTERS = 600
WORD_EDGES = (1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640)
TILE_EDGES = (2, 3, 4, 5, 6, 7, 9, 11, 13, 17, 25)
TOKEN_EDGES = (64, 128, 256, 512, 577, 1024, 1536, 2048, 3072, 4096, 8192)
RATIO_EDGES = (50, 67, 80, 90, 100, 111, 125, 150, 200)
SIDE_EDGES = (64, 128, 224, 336, 448, 640, 1024, 2048, 4096)


def write_page(path: Path, title: str, survey: Survey, planner: VisualPlanner | None = None) -> None:
    """Write the report of a survey to `path`. planner: of a model; what its images become there is shown, too."""
    parts = [f"<p>{_summary(survey)}</p>{_cards(survey.shown[:FIRST])}<div class=row>"]
    for name, counts in (("source", survey.sources), ("kind", survey.kinds), ("script", survey.scripts)):
        parts.append(f"<section><h2>by {name}</h2>{_bars(counts)}</section>")
    parts.append("</div><div class=row>")
    parts.append(f"<section><h2>words of an answer</h2>{draw_histogram(survey.words, WORD_EDGES)}</section>")
    parts.append(f"<section><h2>turns</h2>{draw_histogram(survey.turns, tuple(range(1, 11)))}</section>")
    for name, index in (("height", 0), ("width", 1)):
        sizes = Counter(side[index] for side in survey.sides)
        parts.append(f"<section><h2>image {name} in px</h2>{draw_histogram(sizes, SIDE_EDGES)}</section>")
    if planner is not None:
        parts += _planned(survey.sides, planner)
    parts.append(f"</div>{_pairs(survey)}{_balance(survey)}{_overlap(survey)}")
    for name, funnel in survey.funnels.items():
        parts.append(f"<h2>losses of the synthesis</h2><p><small>{escape(name)}</small></p>{_funnel(funnel)}")
    if survey.shown[FIRST:]:
        parts.append(f"<h2>more samples</h2>{_cards(survey.shown[FIRST:])}")
    write_html(path, title, parts, BY)


def _planned(sides: Sequence[Size], planner: VisualPlanner) -> list[str]:
    """Tiles and image tokens of each image, as if it were alone in its sample."""
    visuals: list[Visual] = []
    over = 0
    for side in sides:
        try:
            visuals += planner.plan([side])
        except ImageBudgetError:
            over += 1
    figures = {
        "tiles of an image": (Counter(visual.tile_count for visual in visuals), TILE_EDGES),
        "image tokens of an image": (Counter(visual.token_count for visual in visuals), TOKEN_EDGES),
    }
    parts = [f"<section><h2>{name}</h2>{draw_histogram(*each)}</section>" for name, each in figures.items()]
    return [*parts, f"<p><b>{over:,} images become more image tokens than the model allows</b></p>"] if over else parts


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


def _pairs(survey: Survey) -> str:
    """Lengths of both answers of the pairs, and why others aren't used; nothing where there are none."""
    counts, bad = survey.pairs, survey.bad_pairs
    if not counts.pairs and not bad:
        return ""
    hundredths = Counter({round(100 * ratio): count for ratio, count in counts.ratios.items()})
    figures = {
        "words chosen": (counts.chosen, WORD_EDGES),
        "words rejected": (counts.rejected, WORD_EDGES),
        "words chosen by rejected, in percent": (hundredths, RATIO_EDGES),
    }
    drawn = "".join(f"<section><h3>{name}</h3>{draw_histogram(*each)}</section>" for name, each in figures.items())
    drawn += f"<section><h3>pairs that can't be used</h3>{_bars(bad)}</section>" if bad else ""
    summary = escape(counts.summary(sum(bad.values())))
    return f"<h2>pairs</h2><p>{summary}</p><div class=row>{drawn}</div>"


def _balance(survey: Survey) -> str:
    total = sum(survey.yes_no.values(), Counter[str]())
    parts = [
        f"<h2>balance of answers</h2><div class=row><section><h3>short answers</h3>{_bars(survey.answers)}</section>"
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
    return "".join(parts) + "</div>" + _forms(survey)


def _forms(survey: Survey) -> str:
    """Short answers by the form of their question, the most frequent forms first; nothing where there are none."""
    if not survey.forms:
        return ""
    frequent = sorted(survey.forms.items(), key=lambda item: (-item[1].total(), item[0]))
    rows = []
    for form, counts in frequent[:ROWS]:
        answer, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        share = 100 * most / counts.total()
        rows.append(
            f"<tr><td>{escape(form)} …</td><td class=n>{counts.total():,}</td><td class=n>{len(counts):,}</td>"
            f"<td>{escape(answer[:40])}</td><td class=n>{share:.0f} %</td>"
            f"<td><span class=bar style='width:{1.4 * share:.0f}px'></span></td></tr>"
        )
    rest = f"<tr><td>{len(frequent) - ROWS:,} more</td></tr>" if len(frequent) > ROWS else ""
    head = "".join(f"<th>{name}</th>" for name in ("question", "times", "answers", "commonest", "share", ""))
    return (
        "<h3>short answers by the form of the question</h3><p>Who knows the form alone, and gives its commonest answer, is "
        f"right of {100 * guessed_share(survey.forms):.0f} %. <code>balance_answers: true</code> in a source evens answers "
        f"out.</p><table><tr>{head}</tr>{''.join(rows)}{rest}</table>"
    )


def _overlap(survey: Survey) -> str:
    if not survey.overlap:
        return ""
    percent = Counter(round(100 * share) for share in survey.overlap)
    return (
        "<h2>caption and instruction</h2><p>Percent of an answer's words that captions of the same image have, mean "
        f"{100 * sum(survey.overlap) / len(survey.overlap):.0f}:</p>{draw_histogram(percent, tuple(range(10, 100, 10)))}"
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
    shown = list(zip(media_kinds(sample.messages), sample.images, strict=False))[:2]
    pictures = "".join(_thumbnail(kind, image) for kind, image in shown)
    turns = "".join(
        f"<p><b class=name>{message.role}</b> {escape(message.text[:SHOWN_CHARACTERS])}"
        f"{'…' if len(message.text) > SHOWN_CHARACTERS else ''}</p>"
        for message in sample.messages[:8]
    )
    turns += _answers(sample) if isinstance(sample, PreferencePair) else ""
    return f"<div class=card>{pictures}{turns}<small>{escape(sample.id)} · {escape(sample.kind)}</small></div>"


def _answers(pair: PreferencePair) -> str:
    shown = ((name, f"{pair.context}{text}") for name, text in zip(SIDES, pair.texts, strict=True))
    return "".join(
        f"<p><b class=name>{name}</b> {escape(text[:SHOWN_CHARACTERS])}{'…' if len(text) > SHOWN_CHARACTERS else ''}</p>"
        for name, text in shown
    )


def _thumbnail(kind: str, image: str) -> str:
    """An image, or the frame in the middle of a video."""
    try:
        url = (frame_url if kind == "video" else thumbnail_url)(image, THUMBNAIL_PX, "jpeg")
        return f"<img alt='' src='{url}'>"
    except UserError as error:
        return f"<p><i>{escape(str(error))}</i></p>"
