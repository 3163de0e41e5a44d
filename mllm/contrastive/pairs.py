"""Pairs of an image and a caption, read from any file of samples by the readers of `mllm.data`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mllm.conversation.schema import Sample
from mllm.data.files import files_of
from mllm.data.readers import READERS
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.records import read_with_places
from mllm.data.samples import locate_image
from mllm.errors import BadSampleError, UserError
from mllm.media.ref import is_stored
from mllm.media.remote import is_url

DEFAULT_READER = "captions"


@dataclass(frozen=True)
class Home:
    """Where the images of a source lie: below `root`, or inside one of `files`, which are those of its pairs."""

    root: Path
    files: frozenset[str] = frozenset()

    def check(self, pair: "Pair") -> None:
        """Raise UserError for an image that leaves its root, links followed, or lies inside another file."""
        image = str(pair.image if is_stored(pair.image) else Path(pair.image).absolute())
        try:
            locate_image(self._whole_root, image, self.files, pair.place, pair.place)
        except BadSampleError as error:
            raise UserError(f"{pair.place}: {error.reason}") from None

    @cached_property
    def _whole_root(self) -> Path:
        return self.root.absolute()

    def below(self, image: str) -> Path | str:
        """`image` as it is read: from the root on, or the reference that it is."""
        return image if is_stored(image) else self.root / image


@dataclass(frozen=True)
class Pair:
    """An image, a file or inside one, and one caption of it; place: where it was read, `file:line` or alike."""

    image: Path | str
    caption: str
    place: str = field(default="", compare=False)
    home: Home | None = field(default=None, compare=False, repr=False)


def pair_of(place: str, sample: Sample, home: Home) -> Pair:
    """The pair that a sample is: its one image and its last answer. Raises BadRecordError for any other sample."""
    if sample.fault is not None:
        raise BadRecordError(place, sample.fault.reason)
    if len(sample.images) != 1 or any(part.type == "video" for m in sample.messages for part in m.content):
        raise BadRecordError(place, f"a pair has one image; found {len(sample.images)} image(s) or videos")
    caption = next((message.text for message in reversed(sample.messages) if message.role == "assistant"), "")
    if not caption.strip():
        raise BadRecordError(place, "the caption is empty")
    return Pair(home.below(sample.images[0]), caption, place, home)


def pairs_in(file: str, reader: str, home: Home, on_error: OnError = raise_error) -> Iterator[Pair]:
    """The pairs of one file. Raises UserError for a file that can't be read at all.

    What is no pair goes to `on_error`; if that returns, the next one follows.
    """
    path = file if is_url(file) else Path(file)
    for place, sample in read_with_places(READERS.get(reader), path, on_error):
        try:
            pair = pair_of(place, sample, home)
        except BadRecordError as error:
            on_error(error)
        else:
            yield pair


def read_pairs(path: Path | str, image_root: Path | str, reader: str = DEFAULT_READER) -> list[Pair]:
    """All pairs of a file, or of the files that a pattern, a list in braces or a directory stands for, in memory.

    Raises UserError, with file and line, for what is no pair and for an image outside its root, and for fewer than two
    different captions.
    """
    files = files_of(str(path), "pairs file")
    home = Home(Path(image_root), frozenset(files))
    pairs = [pair for file in files for pair in pairs_in(file, reader, home)]
    for pair in pairs:
        home.check(pair)
    if len({pair.caption for pair in pairs}) < 2:
        raise UserError(f"{path}: needs at least two different captions to contrast")
    return pairs


def with_place(pair: Pair, error: UserError) -> UserError:
    """`error` of a pair's image, its message opened by the pair's place."""
    reason = str(error)
    return error if not pair.place or reason.startswith(pair.place) else UserError(f"{pair.place}: {reason}")


def checked(pair: Pair) -> Path | str:
    """Where the image of a pair lies. Raises UserError, with its place, where it may not be opened."""
    if pair.home is not None:
        pair.home.check(pair)
    return pair.image


def image_files(pairs: Iterable[Pair]) -> list[Path]:
    """The image file of each pair. Raises UserError for an image that lies inside another file, for who needs files."""
    found = []
    for pair in pairs:
        if is_stored(pair.image):
            raise UserError(f"{pair.place}: its image lies inside another file; give image files here")
        found.append(Path(pair.image))
    return found
