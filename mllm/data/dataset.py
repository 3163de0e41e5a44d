"""The samples of a recipe, and the order in which an epoch visits them."""

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mllm.conversation.schema import Sample
from mllm.data.index import SampleIndex, open_index
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.errors import BadSampleError, UserError


class IndexedSamples(Sequence[Sample]):
    """Rows of an index as samples with their image paths resolved against `root`, each made when it is asked for.

    Asking raises BadSampleError when an image of the sample leaves the root.
    """

    def __init__(self, index: SampleIndex, rows: np.ndarray, root: Path) -> None:
        """rows: int64, of the index. Raises BadSampleError for a path that leaves the root as it is written.

        Links are followed when a sample is asked for: a look at every file would not be opening an index.
        """
        self._index, self._rows, self._root = index, rows, root
        images = self._columns("images")["images"].combine_chunks()
        doubtful = pc.match_substring_regex(pc.list_flatten(images), r"^/|(^|/)\.\.(/|$)")
        for row in np.unique(pc.list_parent_indices(images).filter(doubtful).to_numpy()):
            self[int(row)]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample = self._index[int(self._rows[index])]
        images = tuple(str(resolve_image(self._root, image, sample.id)) for image in sample.images)
        return sample.model_copy(update={"images": images})

    def image_paths(self) -> pa.ListArray:
        """For each sample the paths of its images, resolved, unchecked."""
        images = self._columns("images")["images"].combine_chunks()
        flat = pc.list_flatten(images)
        prefix, nothing = (pa.scalar(text, pa.large_string()) for text in (self._prefix(), ""))
        joined = pc.binary_join_element_wise(prefix, flat, nothing)
        resolved = pc.if_else(pc.starts_with(flat, "/"), flat, joined)
        lengths = pc.list_value_length(images).to_numpy()
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), resolved)

    def _prefix(self) -> str:
        """What stands before a relative path in `str(root / path)`."""
        return "" if str(self._root) == "." else str(self._root / "_")[:-1]

    def groups(self) -> pa.Array:
        """`Sample.group` of each sample."""
        images = self.image_paths()
        ids = self._columns("id")["id"].combine_chunks()
        joined = pc.binary_join(images, pa.scalar("\n", pa.large_string()))
        return pc.if_else(pc.equal(pc.list_value_length(images), 0), ids, joined)

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(characters of text, number of images) of each sample, int64."""
        table = self._columns("text_chars", "images")
        images = pc.list_value_length(table["images"]).to_numpy()
        return table["text_chars"].to_numpy().astype(np.int64), images.astype(np.int64)

    def _columns(self, *names: str) -> pa.Table:
        table = self._index.table.select(list(names))
        return table if len(self._rows) == len(table) else table.take(pa.array(self._rows))


@dataclass(frozen=True)
class SourceSamples:
    """Samples of one source, image paths resolved, how many of them an epoch visits, and in which phase of it."""

    samples: IndexedSamples
    count: int
    phase: int = 0


def read_source(source: SourceSettings) -> SourceSamples:
    """Open a source by its index. Raises UserError when it gives no samples, or a sample can't be read."""
    index = open_index(Path(source.path), source.reader)
    samples = IndexedSamples(index, index.rows_of(source.kinds, source.origins), Path(source.image_root))
    if not samples:
        filtered = source.kinds is not None or source.origins is not None
        raise UserError(f"{source.path} gives no samples{' of the kinds and origins asked for' if filtered else ''}")
    return SourceSamples(samples, source.count or max(1, round(source.weight * len(samples))), source.phase)


def resolve_image(root: Path, image: str, sample_id: str) -> Path:
    """`root / image`, refused when it leaves the root (a data file must not read the rest of the machine)."""
    path = root / image
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadSampleError(sample_id, "image", f"image {image!r} leaves the image root {root}")
    return path


class ChainedSamples(Sequence[Sample]):
    """Sequences of samples, one after another."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number][index - self._ends[number] + len(self._parts[number])]


class Mixture:
    """All samples of a recipe; `order(epoch)` is a pure function of (seed, epoch)."""

    def __init__(self, recipe: RecipeSettings, seed: int, group_by_image: bool) -> None:
        self.sources = [read_source(source) for source in recipe.sources]
        self.samples: Sequence[Sample] = ChainedSamples([source.samples for source in self.sources])
        self._roots = {Path(source.image_root).resolve() for source in recipe.sources}
        self.seed = seed
        self.group_by_image = group_by_image
        self._groups = self._group_numbers() if group_by_image else None

    @property
    def epoch_length(self) -> int:
        """Samples visited in an epoch."""
        return sum(source.count for source in self.sources)

    def phase_lengths(self) -> list[int]:
        """Samples visited in each phase of an epoch, in the order of the phases."""
        lengths: dict[int, int] = {}
        for source in self.sources:
            lengths[source.phase] = lengths.get(source.phase, 0) + source.count
        return [lengths[phase] for phase in sorted(lengths)]

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(characters of text, number of images) of each of `samples`, int64."""
        chars, images = zip(*(source.samples.sizes() for source in self.sources), strict=True)
        return np.concatenate(chars), np.concatenate(images)

    def images(self) -> list[str]:
        """The paths of all images of the recipe, each once, sorted; none is opened."""
        found: set[str] = set()
        for source in self.sources:
            found.update(pc.unique(source.samples.image_paths().flatten()).to_pylist())
        return sorted(found)

    def holds_image(self, path: str) -> bool:
        """Whether `path`, links followed, lies below an image root of the recipe."""
        return any(Path(path).resolve().is_relative_to(root) for root in self._roots)

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
            chosen += [*range(offset, offset + size)] * whole + [offset + i for i in rng.sample(range(size), rest)]
            offset += size
        return [index for phase in sorted(phases) for index in self._shuffled(phases[phase], rng)]

    def _shuffled(self, chosen: list[int], rng: random.Random) -> list[int]:
        if self._groups is None:
            rng.shuffle(chosen)
            return chosen
        members = np.asarray(chosen)
        _, first, inverse, counts = np.unique(
            self._groups[members], return_index=True, return_inverse=True, return_counts=True
        )
        appearance = np.argsort(first)
        place = np.argsort(appearance)
        members = members[np.argsort(place[inverse], kind="stable")]
        stops = np.cumsum(counts[appearance])
        order = [*range(len(counts))]
        rng.shuffle(order)
        shuffled: list[int] = []
        for number in order:
            group = members[stops[number] - counts[appearance[number]] : stops[number]].tolist()
            rng.shuffle(group)
            shuffled += group
        return shuffled

    def _group_numbers(self) -> np.ndarray:
        """int32 for each sample, equal where `Sample.group` is."""
        groups = pa.concat_arrays([source.samples.groups() for source in self.sources])
        numbers = groups.dictionary_encode().indices.to_numpy().copy()
        del groups
        pa.default_memory_pool().release_unused()
        return numbers
