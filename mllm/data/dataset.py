"""The samples of a recipe, and the order in which an epoch visits them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm.conversation.schema import Sample
from mllm.data.readers import READERS
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.errors import UserError


@dataclass(frozen=True)
class SourceSamples:
    """Samples of one source, image paths resolved, how many of them an epoch visits, and in which phase of it."""

    samples: Sequence[Sample]
    count: int
    phase: int = 0


def read_source(source: SourceSettings) -> SourceSamples:
    root = Path(source.image_root)
    samples = []
    for sample in READERS.get(source.reader)(Path(source.path)):
        if _is_kept(sample.kind, source.kinds) and _is_kept(sample.source, source.origins):
            images = tuple(str(resolve_image(root, image, sample.id)) for image in sample.images)
            samples.append(sample.model_copy(update={"images": images}))
    if not samples:
        filtered = source.kinds is not None or source.origins is not None
        raise UserError(f"{source.path} gives no samples{' of the kinds and origins asked for' if filtered else ''}")
    return SourceSamples(samples, source.count or max(1, round(source.weight * len(samples))), source.phase)


def _is_kept(label: str, wanted: tuple[str, ...] | None) -> bool:
    return wanted is None or label in wanted


def resolve_image(root: Path, image: str, sample_id: str) -> Path:
    """`root / image`, refused when it leaves the root (a data file must not read the rest of the machine)."""
    path = root / image
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"sample {sample_id!r}: image {image!r} leaves the image root {root}")
    return path


class Mixture:
    """All samples of a recipe; `order(epoch)` is a pure function of (seed, epoch)."""

    def __init__(self, recipe: RecipeSettings, seed: int, group_by_image: bool) -> None:
        self.sources = [read_source(source) for source in recipe.sources]
        self.samples = [sample for source in self.sources for sample in source.samples]
        self.seed = seed
        self.group_by_image = group_by_image

    @property
    def epoch_length(self) -> int:
        """Samples visited in an epoch."""
        return sum(source.count for source in self.sources)

    def order(self, epoch: int) -> list[int]:
        """Indices into `samples`: of each source every sample floor(weight) times, the rest drawn without replacement.

        With `group_by_image`, samples that share their image stand together; groups come in random order. Sources of
        one phase are shuffled together, and the phases follow each other.
        """
        rng = random.Random(f"{self.seed}/{epoch}")
        phases: dict[int, list[int]] = {}
        offset = 0
        for source in self.sources:
            size = len(source.samples)
            whole, rest = divmod(source.count, size)
            chosen = phases.setdefault(source.phase, [])
            chosen += [offset + i for i in range(size)] * whole + [offset + i for i in rng.sample(range(size), rest)]
            offset += size
        return [index for phase in sorted(phases) for index in self._shuffled(phases[phase], rng)]

    def _shuffled(self, chosen: list[int], rng: random.Random) -> list[int]:
        if not self.group_by_image:
            rng.shuffle(chosen)
            return chosen
        groups: dict[str, list[int]] = {}
        for index in chosen:
            groups.setdefault(self.samples[index].group, []).append(index)
        ordered = list(groups.values())
        rng.shuffle(ordered)
        for group in ordered:
            rng.shuffle(group)
        return [index for group in ordered for index in group]
