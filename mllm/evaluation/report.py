"""One self-contained HTML page of an evaluation: scores with intervals, bars, and right and wrong answers with pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.curves import TrainingRun, draw
from mllm.evaluation.interval_plot import draw_intervals
from mllm.evaluation.runner import Answer, Score
from mllm.files import write_text_atomically
from mllm.media.decode import read_image

GALLERY = 18
STRIP = 6
THUMBNAIL_PX = 96
LABELS = {True: "right", False: "wrong", None: "answers"}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fafafa}
h1,h2,p,summary,.card{overflow-wrap:anywhere}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}
td{white-space:nowrap;font-variant-numeric:tabular-nums}td small{color:#666}
.track{display:inline-block;width:60px;margin-right:.4rem}.bar{display:block;height:.6rem;background:#4a78b5}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.8rem}
.card{background:#fff;border:1px solid #ddd;border-radius:.4rem;padding:.5rem;font-size:13px}
.card img{display:block;margin:0 auto .3rem;width:96px;height:96px;object-fit:contain}
details{margin:.6rem 0}summary{cursor:pointer;font-weight:600}svg{max-width:100%;height:auto}
.scroll{overflow-x:auto}.curves{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}
.note{background:#fbe3c0;padding:.5rem .8rem;border-radius:.4rem}
.right b{color:#2a7d3c}.wrong b{color:#b3372f}
@media(max-width:40rem){h1{font-size:1.5rem}.track{display:none}th,td{padding:.3rem .18rem;font-size:12px}
td small{display:block;font-size:10px}.strip .card:nth-child(n+3){display:none}}
"""


def write_report(
    path: Path,
    title: str,
    scores: Mapping[str, Sequence[Score]],
    answers: Mapping[str, Sequence[Answer]],
    runs: Sequence[TrainingRun] = (),
    note: str | None = None,
    remarks: Mapping[str, Sequence[str]] | None = None,
    by: str | None = None,
) -> None:
    """Write the page to `path`; pictures are embedded, nothing is fetched, all text is escaped.

    note: stands above all. remarks: by benchmark, what to say beneath its table. by: see `mllm.files.atomic_file`.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=note>{escape(note)}</p>" if note else "",
        "<p>Mean scores in %, with 95% bootstrap intervals over images. ",
    ]
    body.append("<i>withheld</i>: the same questions without the image; <i>swapped</i>: with another image; ")
    body.append("<i>majority</i>: the commonest training answer to each question.</p>")
    body.append(_strip(answers))
    for name, entries in scores.items():
        body += [f"<h2>{escape(name)}</h2><div class=scroll>{_table(entries)}</div>", draw_intervals(name, entries)]
        body += [f"<p>{escape(remark)}</p>" for remark in (remarks or {}).get(name, ())]
        metric = metric_of(name)
        body += ["<p>Less is better.</p>"] if metric.lower_is_better else []
        labelled = [(_label(name, a), a) for a in answers[name] if a.condition == "model"]
        wanted = ("answers",) if metric.right_at is None else ("wrong", "right")
        body += [_gallery(label, [a for own, a in labelled if own == label]) for label in wanted]
    if runs:
        body += ["<h2>training loss</h2><div class=curves>", *map(draw, runs), "</div>"]
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
    page = f"<!doctype html><html lang=en>{head}<title>{escape(title)}</title><style>{STYLE}</style>"
    write_text_atomically(path, page + "".join(body) + "</html>\n", by)


def _label(benchmark: str, answer: Answer) -> str:
    return LABELS[metric_of(benchmark).is_right(answer.score)]


def _spread(answers: Sequence[Answer], count: int) -> Sequence[Answer]:
    """`count` of the answers, from all over them."""
    return answers[:: max(1, len(answers) // count)][:count]


def _strip(answers: Mapping[str, Sequence[Answer]]) -> str:
    """A few answers with their pictures from every benchmark, to see at once what was asked."""
    cards = []
    for name, own in answers.items():
        pictured = [a for a in own if a.condition == "model" and a.image]
        cards += [_card(a, _label(name, a)) for a in _spread(pictured, max(1, STRIP // len(answers)))]
    return f"<div class='grid strip'>{''.join(cards[:STRIP])}</div>" if cards else ""


def _gallery(label: str, answers: Sequence[Answer]) -> str:
    """Answers of a kind from all over the benchmark, folded away until they are wanted."""
    shown = _spread(answers, GALLERY)
    cards = "".join(_card(answer, label) for answer in shown)
    title = f"{label} ({len(shown)} of {len(answers)} shown)"
    return f"<details><summary>{title}</summary><div class=grid>{cards}</div></details>"


def _table(entries: Sequence[Score]) -> str:
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


def _card(answer: Answer, label: str) -> str:
    picture = f"<img alt='' src='{thumbnail(answer.image)}'>" if answer.image else ""
    reference = escape(", ".join(answer.references))
    words = f"{escape(answer.question)}<br><b>{escape(answer.answer) or '(nothing)'}</b><br><small>{reference}</small>"
    if answer.score not in (0.0, 1.0):
        words += f"<br><small>score {answer.score:.2f}</small>"
    return f"<div class='card {label}'>{picture}{words}</div>"


def thumbnail(path: str) -> str:
    """A data URL of at most 96 × 96 pixels."""
    image = read_image(path)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
