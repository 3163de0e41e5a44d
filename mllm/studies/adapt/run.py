"""The few-shot, base-to-new and cross-domain protocols, and their tables."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.baselines import Classifier, LinearProbe, TipAdapter, ZeroShot
from mllm.studies.adapt.clap import Clap
from mllm.studies.adapt.coop import CoCoOp, CoOp
from mllm.studies.adapt.problem import LabelledFeatures


class Method(Protocol):
    """Settings of one way to adapt, which `fit` follows."""

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier: ...


METHODS: dict[str, Callable[..., Method]] = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "tip_adapter": TipAdapter,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "clap": Clap,
}


@dataclass(frozen=True)
class Result:
    """Mean accuracy over seeds, its standard deviation (0 for one seed), and the seconds of a fit."""

    method: str
    shots: int
    test: str
    accuracy: float
    deviation: float
    fit_s: float


def accuracy(classifier: Classifier, test: LabelledFeatures) -> float:
    """Return the share of the images whose highest score is their class's. Raises UserError as `Classifier.scores`."""
    scores = classifier.scores(test.features, test.names)
    return (scores.argmax(1) == test.labels).float().mean().item()


def few_shot(
    name: str,
    method: Method,
    encoder: DualEncoder,
    train: LabelledFeatures,
    tests: dict[str, LabelledFeatures],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Result]:
    """Fit on the shots of each count and seed, score on every test set; more than one is the cross-domain protocol.

    A test set that the method can't score (other classes than those of its fit) gets no result.
    """
    results = []
    for count in shots:
        found: dict[str, list[float]] = {}
        started = time.monotonic()
        fitted = [method.fit(encoder, train.shots(count, seed), seed) for seed in seeds]
        took = (time.monotonic() - started) / len(seeds)
        for test_name, test in tests.items():
            try:
                found[test_name] = [accuracy(classifier, test) for classifier in fitted]
            except UserError:
                if test.names == train.names:
                    raise
        for test_name, values in found.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            results.append(Result(name, count, test_name, statistics.mean(values), spread, took))
    return results


def base_to_new(
    name: str, method: Method, encoder: DualEncoder, train: LabelledFeatures, test: LabelledFeatures, shots: int,
    seeds: Sequence[int],
) -> list[Result]:  # fmt: skip
    """Fit on the first half of the classes, score on those (`base`) and on the other half (`new`)."""
    base_train, _ = train.base_and_new()
    base, new = test.base_and_new()
    return few_shot(name, method, encoder, base_train, {"base": base, "new": new}, [shots], seeds)
