"""Does a model know when it's right? Calibration from the log-probabilities that an evaluation's answers carry."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm.errors import UserError
from mllm.evaluation.benchmarks import find_benchmark, metric_of
from mllm.evaluation.compare import answers_file, read_answers
from mllm.evaluation.metric import Metric
from mllm.evaluation.metrics.ece import Bin, EceLine, EceScore, calibration_bins
from mllm.evaluation.selective import (
    COSTS,
    RISKS_PERCENT,
    adaptive_calibration_error,
    area_under_risk,
    area_under_roc,
    brier_score,
    coverage_at_risk,
    effective_reliability_of_halves,
    excess_area_under_risk,
    halves_of,
    negative_log_likelihood,
)
from mllm.files import atomic_file
from mllm.inference.confidence import Choices
from mllm.outputs import check_file

logger = logging.getLogger(__name__)

FIELD = "logprob"
OPTIONS = "option_logprobs"
BY = "mllm calibrate"
BINS = 15
AS_SAID = Choices(temperature=1.0)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """Answers that are right or wrong, each with a confidence: see `mllm.evaluation.selective`.

    groups: what each is about, such as its image.
    """

    confidences: np.ndarray
    right: np.ndarray
    gains: np.ndarray
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.right)


def judge(metric: type[Metric], scores: Sequence[float], confidences: Sequence[float], groups: Sequence[str]) -> Judged:
    right = np.array([bool(metric.is_right(score)) for score in scores])
    return Judged(np.array(confidences), right, np.array([metric.gain(score) for score in scores]), tuple(groups))


def raw_confidence(logprob: float, option_logprobs: Sequence[float]) -> float:
    """The probability that the model gives its answer: among its options where it chose from them, else among all texts."""
    return float(AS_SAID.confidences(option_logprobs).max()) if len(option_logprobs) > 1 else math.exp(logprob)


def figures(judged: Judged, bins: int = BINS) -> Figures:
    """How well the confidences of at least one answer tell right from wrong; `score` is the expected calibration error.

    The threshold of an effective reliability is chosen on one half of the groups for the other.
    """
    confidences, right, gains = judged.confidences, judged.right, judged.gains
    lines = [EceLine(prediction=p, references=r) for p, r in zip(confidences.tolist(), right.tolist(), strict=True)]
    halves = halves_of(judged.groups)
    return EceScore(bins=bins).score(lines).scores | {
        "count": len(judged),
        "ece_adaptive": adaptive_calibration_error(confidences, right, bins),
        "brier": brier_score(confidences, right),
        "nll": negative_log_likelihood(confidences, right),
        "auroc": area_under_roc(confidences, right),
        "aurc": area_under_risk(confidences, gains),
        "e_aurc": excess_area_under_risk(confidences, gains),
        "coverage_at_risk": {f"{r}%": coverage_at_risk(confidences, gains, r / 100) for r in RISKS_PERCENT},
        "effective_reliability": {
            str(cost): effective_reliability_of_halves(confidences, gains, halves, cost) for cost in COSTS
        },
    }


def calibrate(results: Path, bins: int = BINS, picture: Path | None = None) -> dict[str, Figures]:
    """benchmark → `figures` of a result directory's answers.

    An answer's confidence is exp of its `logprob` (natural, summed over its tokens), or its share among the options that it
    was chosen from; its metric says whether it is right (`Metric.is_right`), and benchmarks whose answers aren't right or
    wrong are left out with a warning. `picture` gets a reliability diagram for each benchmark (PNG, or another ending that
    matplotlib knows). Raises UserError where answers have no log-probability, or one that is none, and where no benchmark is
    left.
    """
    if picture is not None:
        check_file(picture, BY, [answers_file(results)])
    found: dict[str, Figures] = {}
    diagrams: dict[str, list[Bin]] = {}
    for name, answers in read_answers(results).items():
        metric = metric_of(name)
        if not is_judged(name):
            logger.warning("%s is left out: its answers aren't right or wrong", name)
            continue
        scores = [float(answer["score"]) for answer in answers.values()]
        confidences = [_confidence(answers_file(results), name, item, own) for item, own in answers.items()]
        groups = [str(own.get("group", item)) for item, own in answers.items()]
        judged = judge(metric, scores, confidences, groups)
        found[name] = figures(judged, bins)
        diagrams[name] = calibration_bins(confidences, judged.right.tolist(), bins)
    if not found:
        raise UserError(f"{answers_file(results)}: no benchmark in it has answers that are right or wrong")
    if picture is not None:
        draw_reliability(picture, diagrams, {name: own["score"] for name, own in found.items()})
    return found


def is_judged(name: str) -> bool:
    """Whether the answers to a benchmark are right or wrong, and said: a measured log-probability is no confidence."""
    if metric_of(name).right_at is None:
        return False
    try:
        return not find_benchmark(name).measures
    except UserError:  # of an older evaluation
        return True


def _confidence(file: Path, benchmark: str, item: str, answer: Mapping[str, Any]) -> float:
    logprob, options = answer.get(FIELD), answer.get(OPTIONS) or ()
    if logprob is None:
        raise UserError(
            f"{file}: question {item!r} of {benchmark} has no {FIELD}; calibration needs one for each answer"
        )
    for value in (logprob, *options):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0:
            raise UserError(
                f"{file}: question {item!r} of {benchmark} has {FIELD} {value!r}, which is no log-probability"
            )
    return raw_confidence(logprob, options)


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
