"""The report of an evaluation: a page of scores, intervals and answers with pictures, and the scores as Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from mllm.conversation.boxes.region import Region, box_region
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.conditions import FURTHER_CONDITIONS
from mllm.evaluation.medium import Medium
from mllm.evaluation.scoring import Answer, Score
from mllm.html import draw_curve, write_html
from mllm.media.data_url import thumbnail_url
from mllm.media.drawing import Mark

GALLERY = 18
STRIP = 6
THUMBNAIL_PX, PLACES_PX = 96, 224
PICTURES = 4
LABELS = {True: "right", False: "wrong", None: "answers"}
LABEL_PX, PLOT_PX, ROW_PX, MARGIN_PX = 76, 370, 18, 24
COLOURS = {
    "model": "#2d5c9a",
    "withheld": "#b3372f",
    "swapped": "#c98a2b",
    "single": "#3d8a57",
    "shuffled": "#7a4fa3",
    "blurred": "#4f8fa8",
    "grey": "#8a8a8a",
    "mirrored": "#a0568f",
    "injected": "#8c2f5a",
    "scrawled": "#b98a9e",
    "contrasted": "#5b6b2f",
    "contrast_0": "#a3a878",
    "majority": "#777",
}
SAID, TRUE = "#e6261f", "#0f9d58"  # places that were answered, and the true ones
MAX_TYPES = 24
EXPLAINED = {
    "withheld": "the same questions without the image",
    "swapped": "with another image",
    **FURTHER_CONDITIONS,
    "majority": "the commonest training answer to each question",
}


@dataclass(frozen=True)
class TrainingRun:
    """One run's `metrics.jsonl`: loss in nats per supervised token, a value a step."""

    name: str
    losses: tuple[float, ...]
    tokens: int
    seconds: float


def training_runs(model: Path) -> list[TrainingRun]:
    """The runs that led to a model directory, first to last; empty where nothing of them is left on disk."""
    runs: list[TrainingRun] = []
    seen: set[Path] = set()
    place: Path | None = model
    while place is not None and place not in seen:
        seen.add(place)
        metrics = place.parent / "metrics.jsonl"
        if metrics.is_file():
            steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
            losses = tuple(float(step["loss"]) for step in steps)
            tokens, seconds = sum(step["tokens"] for step in steps), sum(step["step_s"] for step in steps)
            runs.insert(0, TrainingRun(place.parent.name, losses, tokens, seconds))
        place = _origin(place)
    return [run for run in runs if run.losses]


def _origin(model: Path) -> Path | None:
    """The model that this one's run began with."""
    path = model / "run_config.yaml"
    if not path.is_file():
        return None
    origin = yaml.safe_load(path.read_text(encoding="utf-8"))["model"].get("init_from")
    return Path(origin) if origin else None


def write_report(
    path: Path,
    title: str,
    scores: Mapping[str, Sequence[Score]],
    answers: Mapping[str, Sequence[Answer]],
    runs: Sequence[TrainingRun] = (),
    note: str | None = None,
    remarks: Mapping[str, Sequence[str]] | None = None,
    drawings: Mapping[str, str] | None = None,
    by: str | None = None,
) -> None:
    """Write the page to `path`; pictures are embedded, nothing is fetched, all text is escaped.

    note: stands above all. remarks, drawings: by benchmark, what to say, and HTML to show, beneath its table. by: see
    `mllm.files.atomic_file`.
    """
    body = [f"<p class=note>{escape(note)}</p>" if note else "", _legend(scores), _strip(answers)]
    for name, entries in scores.items():
        body += [
            f"<h2>{escape(name)}</h2><div class=scroll>{score_table(entries)}</div>",
            draw_intervals(name, entries),
        ]
        body += [f"<p>{escape(remark)}</p>" for remark in (remarks or {}).get(name, ())]
        body.append((drawings or {}).get(name, ""))
        metric = metric_of(name)
        body += ["<p>Less is better.</p>"] if metric.lower_is_better else []
        labelled = [(_label(name, a), a) for a in answers[name] if a.condition == "model"]
        wanted = ("answers",) if metric.right_at is None else ("wrong", "right")
        body += [_gallery(label, [a for own, a in labelled if own == label]) for label in wanted]
    if runs:
        body += ["<h2>training loss</h2><div class=row>", *map(_curve, runs), "</div>"]
    write_html(path, title, body, by)


def _curve(run: TrainingRun) -> str:
    caption = f"{len(run.losses)} steps, {run.tokens:,} tokens, {run.seconds / 60:.1f} min"
    return draw_curve(run.name, run.losses, caption)


def _label(benchmark: str, answer: Answer) -> str:
    return LABELS[metric_of(benchmark).is_right(answer.score)]


def _spread(answers: Sequence[Answer], count: int) -> Sequence[Answer]:
    """`count` of the answers, from all over them."""
    return answers[:: max(1, len(answers) // count)][:count]


def _legend(scores: Mapping[str, Sequence[Score]]) -> str:
    """Say what the numbers are, and what the conditions that are there mean."""
    there = {entry.condition for entries in scores.values() for entry in entries}
    meanings = "; ".join(f"<i>{name}</i>: {meaning}" for name, meaning in EXPLAINED.items() if name in there)
    said = f" {meanings}." if meanings else ""
    return f"<p>Mean scores in %, with 95% bootstrap intervals over images.{said}</p>"


def _strip(answers: Mapping[str, Sequence[Answer]]) -> str:
    """A few answers with their pictures from every benchmark, to see at once what was asked."""
    cards = []
    for name, own in answers.items():
        pictured = [a for a in own if a.condition == "model" and a.media]
        cards += [answer_card(a, _label(name, a)) for a in _spread(pictured, max(1, STRIP // len(answers)))]
    return f"<div class='grid small strip'>{''.join(cards[:STRIP])}</div>" if cards else ""


def _gallery(label: str, answers: Sequence[Answer]) -> str:
    """Answers of a kind from all over the benchmark, folded away until they are wanted."""
    shown = _spread(answers, GALLERY)
    cards = "".join(answer_card(answer, label) for answer in shown)
    title = f"{label} ({len(shown)} of {len(answers)} shown)"
    has_places = any(marks_of(answer) for answer in shown)
    said = (
        f"<p>Places: <b style='color:{SAID}'>answered</b>, <b style='color:{TRUE}'>true</b>.</p>" if has_places else ""
    )
    return f"<details><summary>{title}</summary>{said}<div class='grid small'>{cards}</div></details>"


def score_table(entries: Sequence[Score]) -> str:
    conditions = list(dict.fromkeys(entry.condition for entry in entries))
    head = "".join(f"<th>{escape(c)}</th>" for c in ("type", "questions", *conditions))
    rows = []
    for kind in dict.fromkeys(entry.type for entry in entries):
        own = {entry.condition: entry for entry in entries if entry.type == kind}
        cells = "".join(_cell(own[c]) if c in own else "<td></td>" for c in conditions)
        rows.append(f"<tr><td>{escape(kind)}</td><td>{next(iter(own.values())).count}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _cell(entry: Score) -> str:
    bar = f"<span class=track><span class=bar style='width:{100 * min(1.0, entry.score):.0f}%'></span></span>"
    interval = f"{100 * entry.low:.1f}–{100 * entry.high:.1f}"
    return f"<td>{bar}{100 * entry.score:.1f} <small>{interval}</small></td>"


def _picture(medium: Medium, marks: Sequence[Mark] = ()) -> str:
    """A small image, larger with places on it, or the name of a video, of which a page embeds nothing."""
    if medium.is_video:
        return f"<small>video {escape(Path(medium.source).name)}</small><br>"
    if marks:
        return f"<img class=places alt='' src='{thumbnail_url(medium.source, PLACES_PX, marks=marks)}'>"
    return f"<img alt='' src='{thumbnail_url(medium.source, THUMBNAIL_PX)}'>"


def answer_card(answer: Answer, label: str) -> str:
    marks = marks_of(answer)
    pictures = "".join(_picture(medium, marks) for medium in answer.media[:PICTURES])
    reference = escape(", ".join(answer.references))
    words = f"{escape(answer.question)}<br><b>{escape(answer.answer) or '(nothing)'}</b><br><small>{reference}</small>"
    if answer.score not in (0.0, 1.0):
        words += f"<br><small>score {answer.score:.2f}</small>"
    return f"<div class='card {label}'>{pictures}{words}</div>"


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


def as_markdown(
    title: str, scores: Mapping[str, Sequence[Score]], note: str | None, remarks: Mapping[str, Sequence[str]]
) -> str:
    """A table for each benchmark, of means in % with their intervals; `note` and `remarks` as in `write_report`."""
    blocks = [f"# {_plain(title)}"]
    blocks += [f"**{_plain(note)}**"] if note else []
    blocks.append("Mean scores in % [95% bootstrap interval over images].")
    for name, entries in scores.items():
        direction = " (less is better)" if metric_of(name).lower_is_better else ""
        blocks += [f"## {_plain(name)}{direction}", _markdown_table(entries)]
        blocks += ["\n".join(f"- {_plain(remark)}" for remark in remarks[name])] if remarks.get(name) else []
    return "\n\n".join(blocks) + "\n"


def _markdown_table(entries: Sequence[Score]) -> str:
    conditions = list(dict.fromkeys(entry.condition for entry in entries))
    rows = [["type", "questions", *conditions], ["---"] * (len(conditions) + 2)]
    for kind in dict.fromkeys(entry.type for entry in entries):
        own = {entry.condition: entry for entry in entries if entry.type == kind}
        cells = [_markdown_cell(own[condition]) if condition in own else "" for condition in conditions]
        rows.append([_plain(kind), str(next(iter(own.values())).count), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cell(entry: Score) -> str:
    return f"{100 * entry.score:.1f} [{100 * entry.low:.1f}, {100 * entry.high:.1f}]"


def _plain(text: str) -> str:
    """Text that opens no cell, line or markup of its own."""
    line = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in line)


def marks_of(answer: Answer) -> list[Mark]:
    """The places of an answer in its image, true boxes first, so that the answered ones lie on them; [] where it has none."""
    fields = answer.fields
    width, height, references = fields.get("width"), fields.get("height"), fields.get("references")
    if not width or not height or not isinstance(references, list):
        return []
    true = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in filter(_is_corners, references)]
    boxes, points = fields.get("boxes") or [], fields.get("points") or []
    said = [box_region(box) for box in boxes] or [Region(point=(x, y)) for x, y in points]
    pairs = [*((box_region(box), TRUE) for box in true), *((region, SAID) for region in said)]
    return [Mark(region.clipped().outline, colour) for region, colour in pairs]


def _is_corners(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)
