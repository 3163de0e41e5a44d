"""What pairs are like: lengths of both answers, what one is of the other, and how early they part."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from mllm.conversation.pair import PreferencePair


@dataclass
class PairCounts:
    """Counts over pairs; `chosen` and `rejected` by words of the answer.

    ratios: words of the chosen answer by those of the rejected one, a hundredth exact. parting_at_once: pairs whose first
    words differ, so that the answers share no opening. other_images: pairs whose rejected side shows other images.
    """

    pairs: int = 0
    chosen: Counter[int] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    ratios: Counter[float] = field(default_factory=Counter)
    parting_at_once: int = 0
    other_images: int = 0

    def add(self, pair: PreferencePair) -> None:
        chosen, rejected = (text.split() for text in pair.texts)
        self.pairs += 1
        self.chosen[len(chosen)] += 1
        self.rejected[len(rejected)] += 1
        self.ratios[round(len(chosen) / max(1, len(rejected)), 2)] += 1
        self.parting_at_once += chosen[:1] != rejected[:1]
        self.other_images += pair.rejected_images is not None

    @property
    def median_ratio(self) -> float:
        """Median of `ratios`; 0 without pairs."""
        return _median(self.ratios)

    def summary(self, dropped: int = 0) -> str:
        """A line. dropped: how many more were read that can't be used."""
        share = 100 * self.parting_at_once / max(1, self.pairs)
        words = f"{_median(self.chosen):g} words chosen and {_median(self.rejected):g} rejected"
        text = (
            f"{self.pairs:,} pairs: a median of {words}, of {self.median_ratio:.2f} as their ratio; "
            f"the first words of {share:.1f} % differ"
        )
        text += f"; {self.other_images:,} reject other images" if self.other_images else ""
        lost = 100 * dropped / max(1, self.pairs + dropped)
        return f"{text}; {dropped:,} more ({lost:.1f} %) can't be used" if dropped else text


def _median(counts: Counter[int] | Counter[float]) -> float:
    return float(median(counts.elements())) if counts else 0.0
