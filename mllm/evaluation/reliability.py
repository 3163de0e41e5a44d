"""Does a model know when it's right? Calibration from the log-probabilities that an evaluation's answers carry."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.evaluation.benchmarks import build_metric, metric_of
from mllm.evaluation.compare import answers_file, read_answers
from mllm.evaluation.metrics.ece import Bin, EceLine, calibration_bins
from mllm.files import atomic_file
from mllm.outputs import check_file

logger = logging.getLogger(__name__)

FIELD = "logprob"
BY = "mllm calibrate"


def calibrate(results: Path, bins: int = 15, picture: Path | None = None) -> dict[str, dict[str, float]]:
    """benchmark → expected calibration error, accuracy and mean confidence of a result directory's answers.

    An answer's confidence is exp of its `logprob` (natural, summed over its tokens); its metric says whether it is right
    (`Metric.is_right`), and benchmarks whose answers aren't right or wrong are left out with a warning. `picture` gets a
    reliability diagram for each benchmark (PNG, or another ending that matplotlib knows). Raises UserError where answers
    have no log-probability, or one that is none, and where no benchmark is left.
    """
    if picture is not None:
        check_file(picture, BY, [answers_file(results)])
    metric = build_metric("ece", {"bins": str(bins)})
    found: dict[str, dict[str, float]] = {}
    diagrams: dict[str, list[Bin]] = {}
    for name, answers in read_answers(results).items():
        scored_by = metric_of(name)
        if scored_by.right_at is None:
            logger.warning("%s is left out: its answers aren't right or wrong", name)
            continue
        right = [bool(scored_by.is_right(float(answer["score"]))) for answer in answers.values()]
        confidences = [_confidence(answers_file(results), name, item, a.get(FIELD)) for item, a in answers.items()]
        lines = [EceLine(prediction=p, references=r) for p, r in zip(confidences, right, strict=True)]
        found[name] = metric.score(lines).scores | {"count": len(lines)}
        diagrams[name] = calibration_bins(confidences, right, bins)
    if not found:
        raise UserError(f"{answers_file(results)}: no benchmark in it has answers that are right or wrong")
    if picture is not None:
        draw_reliability(picture, diagrams, {name: own["score"] for name, own in found.items()})
    return found


def _confidence(file: Path, benchmark: str, item: str, logprob: object) -> float:
    if logprob is None:
        raise UserError(
            f"{file}: question {item!r} of {benchmark} has no {FIELD}; calibration needs one for each answer"
        )
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob <= 0:
        raise UserError(
            f"{file}: question {item!r} of {benchmark} has {FIELD} {logprob!r}, which is no log-probability"
        )
    return math.exp(logprob)


def draw_reliability(path: Path, diagrams: dict[str, list[Bin]], errors: dict[str, float]) -> None:
    """A panel a benchmark: accuracy over confidence, a bar a bin, and below it how many answers the bin has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(diagrams), 5), layout="constrained")
    panels = figure.subplots(2, len(diagrams), squeeze=False, sharex=True, height_ratios=(3, 1))
    for column, (name, bins) in enumerate(diagrams.items()):
        _draw(panels[0][column], panels[1][column], bins)
        panels[0][column].set_title(f"{name}: ECE {errors[name]:.3f}")
    with atomic_file(path, BY) as temporary:
        try:
            figure.savefig(temporary, dpi=150)
        except ValueError as error:
            raise UserError(f"can't draw {path}: {error}") from None


def _draw(accuracy: Any, counts: Any, bins: Sequence[Bin]) -> None:
    places, widths = [b.low for b in bins], [max(b.high - b.low, 0.01) for b in bins]
    accuracy.bar(places, [b.accuracy for b in bins], widths, align="edge", color="#4a78b5", edgecolor="white")
    accuracy.plot([0, 1], [0, 1], color="#777", linestyle="--", linewidth=1)
    accuracy.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o", color="#b3372f", markersize=4)
    accuracy.set(xlim=(0, 1.01), ylim=(0, 1), ylabel="share right")
    counts.bar(places, [b.count for b in bins], widths, align="edge", color="#c5d4e8", edgecolor="white")
    counts.set(xlabel="confidence", ylabel="answers")
