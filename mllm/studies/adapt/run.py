"""The few-shot, base-to-new and cross-domain protocols."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from mllm.contrastive.augment_settings import AugmentSettings
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.attacks import ATTACKS, robust_accuracy
from mllm.studies.adapt.clap import Clap
from mllm.studies.adapt.classifier import Classifier, ZeroShot
from mllm.studies.adapt.coop import CoCoOp, CoOp
from mllm.studies.adapt.probe import LinearProbe
from mllm.studies.adapt.problem import LabelledFeatures
from mllm.studies.adapt.tip import FineTunedTipAdapter, TipAdapter
from mllm.studies.adapt.views import COOP_VIEWS, TIP_VIEWS, ImageHead, with_views


class Method(Protocol):
    """Settings of one way to adapt, which `fit` follows."""

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier: ...


METHODS: dict[str, Callable[..., Method]] = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "tip_adapter": TipAdapter,
    "tip_adapter_f": FineTunedTipAdapter,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "image_head": ImageHead,
    "clap": Clap,
}
# The views that a method's authors learn from; the others learn from images as they are, or draw views of their own.
VIEWS: dict[str, AugmentSettings] = {
    "tip_adapter": TIP_VIEWS,
    "tip_adapter_f": TIP_VIEWS,
    "coop": COOP_VIEWS,
    "cocoop": COOP_VIEWS,
}
BASE, NEW = "base", "new"


@dataclass(frozen=True)
class Result:
    """Accuracy of each seed on a test set, and under each attack; seconds of a fit, and by how many MiB one grew the memory
    at most (None where the system doesn't tell)."""

    method: str
    shots: int
    test: str
    accuracies: tuple[float, ...]
    robust: dict[str, tuple[float, ...]]
    fit_s: float
    memory_mib: float | None

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Return the standard deviation over seeds, 0 for one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True)
class Extras:
    """What may be done beside: `view_count` random views of the shots learned from, `attacks` by name, and `on_fitted` told
    of each classifier with its number of shots, its seed, and the classes it was fitted on."""

    view_count: int = 0
    attacks: Sequence[str] = ()
    on_fitted: Callable[[Classifier, int, int, Sequence[str]], None] | None = field(default=None)


@torch.no_grad()
def accuracy(classifier: Classifier, test: LabelledFeatures) -> float:
    """Return the share of the images whose highest score is their class's. Raises UserError as `Classifier.scores`."""
    scores = classifier.scores(test.raw, test.names)
    return (scores.argmax(1) == test.labels).float().mean().item()


def few_shot(
    name: str,
    method: Method,
    encoder: DualEncoder,
    train: LabelledFeatures,
    tests: dict[str, LabelledFeatures],
    shots: Sequence[int],
    seeds: Sequence[int],
    extras: Extras = Extras(),
) -> list[Result]:
    """Fit on the shots of each count and seed, score on every test set; more than one is the cross-domain protocol.

    A test set that the method can't score (other classes than those of its fit) gets no result.
    """
    results = []
    for count in shots:
        fitted, took, grown = [], [], []
        for seed in seeds:
            with _Cost() as cost:
                drawn = train.shots(count, seed)
                if name in VIEWS:
                    drawn = with_views(encoder, drawn, VIEWS[name], extras.view_count, seed)
                classifier = method.fit(encoder, drawn, seed)
            fitted.append(classifier)
            took.append(cost.seconds)
            grown.append(cost.memory_mib)
            if extras.on_fitted is not None:
                extras.on_fitted(classifier, count, seed, train.names)
        known = [mib for mib in grown if mib is not None]
        for test_name, test in tests.items():
            try:
                accuracies = tuple(accuracy(classifier, test) for classifier in fitted)
            except UserError:
                if test.names == train.names:
                    raise
                continue
            robust = {
                attack: tuple(
                    robust_accuracy(encoder, classifier, test, ATTACKS[attack], seed)
                    for classifier, seed in zip(fitted, seeds, strict=True)
                )
                for attack in extras.attacks
            }
            memory = max(known) if known else None
            results.append(Result(name, count, test_name, accuracies, robust, statistics.mean(took), memory))
    return results


def base_to_new(
    name: str, method: Method, encoder: DualEncoder, train: LabelledFeatures, test: LabelledFeatures, shots: int,
    seeds: Sequence[int], extras: Extras = Extras(),
) -> list[Result]:  # fmt: skip
    """Fit on the first half of the classes, score on those (`base`) and on the other half (`new`)."""
    base_train, _ = train.base_and_new()
    base, new = test.base_and_new()
    return few_shot(name, method, encoder, base_train, {BASE: base, NEW: new}, [shots], seeds, extras)


def harmonic_mean(base: float, new: float) -> float:
    """Return CoCoOp's H of accuracies on base and new classes; 0 where either is."""
    return 2 * base * new / (base + new) if base + new else 0.0


class _Cost:
    """Seconds of a block, and the growth of resident memory's peak in it, or of the GPU's, in MiB."""

    seconds: float
    memory_mib: float | None = None

    def __enter__(self) -> "_Cost":
        self.on_gpu = torch.cuda.is_available()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before: float | None = torch.cuda.memory_allocated() / 2**20
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
            self.before = _resident_mib("VmRSS")
        self.started = time.monotonic()
        return self

    def __exit__(self, *failure: object) -> None:
        self.seconds = time.monotonic() - self.started
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else _resident_mib("VmHWM")
        if peak is not None and self.before is not None:
            self.memory_mib = peak - self.before


def _resident_mib(field_name: str) -> float | None:
    """Read a field of Linux's own account of this process; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field_name)), None)
