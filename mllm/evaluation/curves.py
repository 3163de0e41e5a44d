"""The training behind a model, for its report: the loss of each stage as a small drawing."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import yaml

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 440, 180, 34
SMOOTHING = 0.8


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


def draw(run: TrainingRun) -> str:
    """An SVG figure: every step's loss, and its running mean (exponential, 0.8)."""
    low, high = min(run.losses), max(run.losses)
    span = (high - low) or 1.0

    def points(values: list[float]) -> str:
        step = (WIDTH_PX - 2 * MARGIN_PX) / max(1, len(values) - 1)
        height = HEIGHT_PX - 2 * MARGIN_PX
        places = [(MARGIN_PX + i * step, MARGIN_PX + height * (high - v) / span) for i, v in enumerate(values)]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    smooth: list[float] = []
    for loss in run.losses:
        smooth.append(loss if not smooth else SMOOTHING * smooth[-1] + (1 - SMOOTHING) * loss)
    bottom = HEIGHT_PX - MARGIN_PX
    return (
        f"<figure><figcaption>{escape(run.name)}: {len(run.losses)} steps, {run.tokens:,} tokens, "
        f"{run.seconds / 60:.1f} min</figcaption>"
        f"<svg viewBox='0 0 {WIDTH_PX} {HEIGHT_PX}' width={WIDTH_PX} role=img "
        f"aria-label='training loss of {escape(run.name)}'>"
        f"<line x1={MARGIN_PX} y1={bottom} x2={WIDTH_PX - MARGIN_PX} y2={bottom} stroke='#bbb'/>"
        f"<text x=2 y={MARGIN_PX + 4} font-size=11>{high:.2f}</text><text x=2 y={bottom} font-size=11>{low:.2f}</text>"
        f"<text x={WIDTH_PX - MARGIN_PX} y={bottom + 16} font-size=11 text-anchor=end>step {len(run.losses)}</text>"
        f"<polyline fill=none stroke='#c5d4e8' points='{points(list(run.losses))}'/>"
        f"<polyline fill=none stroke='#2d5c9a' stroke-width=2 points='{points(smooth)}'/></svg></figure>"
    )
