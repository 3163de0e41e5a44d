"""The frame that every page of ours shares: its head, its style, and the drawings that more than one page has.

A page is one file: nothing is fetched, pictures are data URLs (`mllm.media.data_url`), and whoever writes text into it
escapes it (`html.escape`).
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from mllm.files import write_text_atomically
from mllm.running_mean import RunningMean

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fafafa}
h1,h2,p,summary,td,.card{overflow-wrap:anywhere}
table{border-collapse:collapse;margin:.7rem 0}th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}small{color:#666}
.scroll{overflow-x:auto}.scroll td{white-space:nowrap;font-variant-numeric:tabular-nums}
.bar{display:inline-block;height:.7rem;background:#4a78b5}.bar.lost{background:#b3563f}
.track{display:inline-block;width:60px;margin-right:.4rem}.track .bar{display:block;height:.6rem}
.funnel{width:min(320px,40vw);white-space:nowrap;line-height:1}
.row{display:flex;flex-wrap:wrap;gap:1rem 2.5rem}.row>*{max-width:100%;overflow-x:auto}figure{margin:0}
.grid{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}
.grid.small{grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr))}
.card{background:#fff;border:1px solid #ddd;border-radius:.4rem;padding:.5rem;font-size:13px}
.card img{display:block;max-width:100%;margin:0 auto .3rem}
.small .card img{width:96px;height:96px;object-fit:contain}
.small .card img.places{width:auto;height:auto;max-height:15rem}
details{margin:.6rem 0}summary{cursor:pointer;font-weight:600}
svg{max-width:100%;height:auto}.histogram text{font:11px system-ui,sans-serif;fill:#444}
.note{background:#fbe3c0;padding:.5rem .8rem;border-radius:.4rem}
.name{color:#2a5d8f}.right b{color:#2a7d3c}.wrong b{color:#b3372f}
@media(max-width:40rem){body{margin:1rem auto}h1{font-size:1.5rem}.track{display:none}th,td{padding:.15rem .3rem}
.scroll td,.scroll th{padding:.3rem .18rem;font-size:12px}.scroll small{display:block;font-size:10px}
.histogram text{font-size:14px}.strip .card:nth-child(n+3){display:none}}
"""
CURVE_PX = (180, 440)
MARGIN_PX = 34


def write_html(path: Path, title: str, body: Iterable[str], by: str | None = None) -> None:
    """Write a page of `body`'s HTML beneath its title; `by` is the command that writes, see `mllm.files.atomic_file`."""
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
    page = f"<!doctype html><html lang=en>{head}<title>{escape(title)}</title><style>{STYLE}</style>"
    write_text_atomically(path, f"{page}<h1>{escape(title)}</h1>{''.join(body)}</html>\n", by)


def draw_curve(name: str, losses: Sequence[float], caption: str = "") -> str:
    """Draw the loss of every step of a run, at least one, and its running mean, as an SVG figure."""
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    height, width = CURVE_PX
    bottom, right = height - MARGIN_PX, width - MARGIN_PX

    def points(values: Iterable[float]) -> str:
        step = (right - MARGIN_PX) / max(1, len(losses) - 1)
        scale = (bottom - MARGIN_PX) / span
        return " ".join(
            f"{MARGIN_PX + i * step:.1f},{MARGIN_PX + scale * (high - v):.1f}" for i, v in enumerate(values)
        )

    smooth = map(RunningMean().add, losses)
    told = f": {caption}" if caption else ""
    return (
        f"<figure><figcaption>{escape(name + told)}</figcaption><svg viewBox='0 0 {width} {height}' width={width} role=img "
        f"aria-label='training loss of {escape(name)}'>"
        f"<line x1={MARGIN_PX} y1={bottom} x2={right} y2={bottom} stroke='#bbb'/>"
        f"<text x=2 y={MARGIN_PX + 4} font-size=11>{high:.2f}</text><text x=2 y={bottom} font-size=11>{low:.2f}</text>"
        f"<text x={right} y={bottom + 16} font-size=11 text-anchor=end>step {len(losses)}</text>"
        f"<polyline fill=none stroke='#c5d4e8' points='{points(losses)}'/>"
        f"<polyline fill=none stroke='#2d5c9a' stroke-width=2 points='{points(smooth)}'/></svg></figure>"
    )


def draw_histogram(counts: Mapping[int, int], edges: Sequence[int]) -> str:
    """Draw how many values lie below the first edge, from each edge to the next, and from the last on, as an SVG."""
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
    width = len(bins) * step
    return f"<svg class=histogram viewBox='0 0 {width} 140' width='{width}' role=img>{bars}</svg>"
