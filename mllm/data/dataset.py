"""The samples of a recipe, and the order in which an epoch visits them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mllm.conversation.schema import Sample
from mllm.data.answer_balance import Cell, answer_key, balanced_cells, drawn
from mllm.data.index import join_indexes, open_index
from mllm.data.readers import READERS
from mllm.data.readers.errors import raise_error
from mllm.data.readers.records import read_with_places
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.samples import IMAGE_COLUMNS, ChainedSamples, IndexedSamples, with_resolved_images
from mllm.data.streaming import StreamedSamples
from mllm.errors import UserError
from mllm.media.ref import is_stored
from mllm.media.remote import is_url

CHARS_PER_TOKEN = 4
BATCHES_PER_SORT = 32


@dataclass(frozen=True)
class SourceSamples:
    """Samples of one source, image paths resolved, how many of them an epoch visits, and in which phase of it.

    cells: which of them are visited equally often; () for all.
    """

    samples: IndexedSamples | StreamedSamples[Sample]
    count: int
    phase: int = 0
    cells: Sequence[Cell] = ()


def read_source(source: SourceSettings, seed: str = "") -> SourceSamples:
    """Open a source by its index, or as a stream whose order depends on `seed`.

    Raises UserError when it gives no samples, or a sample can't be read.
    """
    if source.stream:
        assert source.count is not None, source.path
        return SourceSamples(_stream(source, seed), source.count, source.phase)
    files = source.files()
    index = join_indexes([open_index(Path(file), source.reader) for file in files])
    root, rows = Path(source.image_root), index.rows_of(source.kinds, source.origins)
    samples = IndexedSamples(index, rows, root, [str(Path(file)) for file in files])
    if not samples:
        filtered = source.kinds is not None or source.origins is not None
        raise UserError(f"{source.path} gives no samples{' of the kinds and origins asked for' if filtered else ''}")
    count = source.count or max(1, round(source.weight * len(samples)))
    keys = (answer_key(sample.messages) for sample in samples.unlocated()) if source.balance_answers else ()
    return SourceSamples(samples, count, source.phase, balanced_cells(keys, count) if source.balance_answers else ())


def _stream(source: SourceSettings, seed: str) -> StreamedSamples[Sample]:
    reader, root, files = READERS.get(source.reader), Path(source.image_root), source.files()
    holders = {str(Path(file)) for file in files}

    def read(file: str) -> Iterator[Sample]:
        for place, sample in read_with_places(reader, file if is_url(file) else Path(file), raise_error):
            if _is_kept(sample.kind, source.kinds) and _is_kept(sample.source, source.origins):
                yield sample.model_copy(update={"place": place})

    def finish(sample: Sample) -> Sample:
        return with_resolved_images(sample, root, holders)

    return StreamedSamples(files, read, source.shuffle_buffer, seed, finish)


def _is_kept(label: str, wanted: tuple[str, ...] | None) -> bool:
    return wanted is None or label in wanted


class Mixture:
    """All samples of a recipe; `order(epoch)` is a pure function of (seed, epoch).

    What needs to know every sample (grouping, sizes, the list of images) raises UserError when a source is a stream.
    """

    def __init__(self, recipe: RecipeSettings, seed: int, group_by_image: bool) -> None:
        self.sources = [read_source(source, f"{seed}/stream/{n}") for n, source in enumerate(recipe.sources)]
        self.samples = ChainedSamples([source.samples for source in self.sources])
        self._names = [source.path for source in recipe.sources]
        self._roots = {Path(source.image_root).resolve() for source in recipe.sources}
        self.seed = seed
        self.group_by_image = group_by_image
        self._groups = self._group_numbers() if group_by_image else None

    @property
    def epoch_length(self) -> int:
        """Samples visited in an epoch."""
        return sum(source.count for source in self.sources)

    def unchecked(self, index: int) -> tuple[Sample, dict[str, str]]:
        """A sample, and which of its images may not be opened and why: see `IndexedSamples.unchecked`.

        A sample of a stream with such an image raises BadSampleError.
        """
        part, number = self.samples.place_of(index)
        samples = self.sources[part].samples
        return samples.unchecked(number) if isinstance(samples, IndexedSamples) else (samples[number], {})

    def phase_lengths(self) -> list[int]:
        """Samples visited in each phase of an epoch, in the order of the phases."""
        lengths: dict[int, int] = {}
        for source in self.sources:
            lengths[source.phase] = lengths.get(source.phase, 0) + source.count
        return [lengths[phase] for phase in sorted(lengths)]

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(characters of text, number of images) of each of `samples`, int64."""
        chars, images = zip(*(samples.sizes() for samples in self.indexed("the sizes of its samples")), strict=True)
        return np.concatenate(chars), np.concatenate(images)

    def indexed(self, what: str) -> list[IndexedSamples]:
        found = []
        for name, source in zip(self._names, self.sources, strict=True):
            if isinstance(source.samples, StreamedSamples):
                raise UserError(f"source {name} is a stream, and {what} can't be known ahead; remove stream: true")
            found.append(source.samples)
        return found

    def images(self) -> list[str]:
        """The paths of all images of the recipe, each once, sorted; none is opened."""
        found: set[str] = set()
        for samples in self.indexed("a list of its images"):
            for column in IMAGE_COLUMNS:
                found.update(pc.unique(samples.image_paths(column).flatten()).to_pylist())
        return sorted(found)

    def holds_image(self, path: str) -> bool:
        """Whether `path`, links followed, lies below an image root of the recipe, or inside a file of samples."""
        return is_stored(path) or any(Path(path).resolve().is_relative_to(root) for root in self._roots)

    def order(self, epoch: int) -> list[int]:
        """Indices into `samples`: of each source every sample floor(weight) times, the rest drawn without replacement,
        or where answers are balanced of each of its cells.

        With `group_by_image`, samples that share their image stand together; groups come in random order. Sources of
        one phase are shuffled together, and the phases follow each other. A stream gives its samples in their own order.
        """
        rng = random.Random(f"{self.seed}/{epoch}")
        phases: dict[int, list[int]] = {}
        streams: list[range] = []
        offset = 0
        for source in self.sources:
            size = len(source.samples)
            chosen = phases.setdefault(source.phase, [])
            if isinstance(source.samples, StreamedSamples):
                begin = offset + epoch * source.count
                streams.append(range(begin, begin + source.count))
                chosen += streams[-1]
                offset += size
                continue
            chosen += [offset + i for i in drawn(source.cells or [(range(size), source.count)], rng)]
            offset += size
        order = [index for phase in sorted(phases) for index in self._shuffled(phases[phase], rng)]
        for stream in streams:
            places = [place for place, index in enumerate(order) if index in stream]
            for place, index in zip(places, stream, strict=True):
                order[place] = index
        return order

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
        groups = pa.concat_arrays([samples.groups() for samples in self.indexed("the images of its samples")])
        numbers = groups.dictionary_encode().indices.to_numpy().copy()
        del groups
        pa.default_memory_pool().release_unused()
        return numbers


def group_by_length(mixture: Mixture, epoch: int, batch_size: int, image_tokens: np.ndarray) -> list[int]:
    """`mixture.order(epoch)` rearranged within each phase, so that the batches cut from it hold samples that are alike.

    LLaVA's grouping by modality and length, as a function of (seed, epoch): padding is saved, and no rank waits for
    another's encoder. What a step's set of samples is still depends on nothing but the seed and the step.

    image_tokens: int64 [samples] of the mixture, estimated as well. Lengths of text are estimated from its characters, so
    that nothing is tokenized. Only as many samples as are near each other in the mixture's own order are sorted together;
    then the batches are shuffled.
    """
    chars, images = mixture.sizes()
    lengths = chars / CHARS_PER_TOKEN + image_tokens
    rng = random.Random(f"{mixture.seed}/{epoch}/length")
    order = mixture.order(epoch)
    grouped: list[int] = []
    for count in mixture.phase_lengths():
        phase = order[len(grouped) : len(grouped) + count]
        # The batch that the phase before began is filled up with what comes.
        begun = -len(grouped) % batch_size
        grouped += phase[:begun] + _grouped(phase[begun:], lengths, images > 0, batch_size, rng)
    return grouped


def _grouped(
    order: list[int], lengths: np.ndarray, has_image: np.ndarray, batch_size: int, rng: random.Random
) -> list[int]:
    batches: list[list[int]] = []
    rest: list[int] = []
    for wanted in (True, False):
        members = [index for index in order if has_image[index] == wanted]
        whole = len(members) // batch_size * batch_size
        rest += members[whole:]
        for start in range(0, whole, BATCHES_PER_SORT * batch_size):
            alike = members[start : min(whole, start + BATCHES_PER_SORT * batch_size)]
            alike.sort(key=lambda index: lengths[index])
            batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    rng.shuffle(batches)
    return [index for batch in batches for index in batch] + rest
