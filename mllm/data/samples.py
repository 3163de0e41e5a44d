"""Samples of a source as sequences: made from an index when they are asked for, their images held to their place."""

import bisect
import os
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import Sample
from mllm.data.index import SampleIndex
from mllm.errors import BadSampleError
from mllm.media.altered import ALTERED, without_change
from mllm.media.ref import STORED, ImageRef, is_stored
from mllm.media.span import SPAN, without_span

IMAGE_COLUMNS = ("images", "rejected_images")
LEAVES = r"^/|(^|/)\.\.(/|$)"
UNLIKE_PATHS = f"{LEAVES}|{SPAN}|{ALTERED}"


def resolve_image(root: Path, image: str, sample_id: str, place: str = "") -> Path:
    """`root / image`, refused when it leaves the root (a data file must not read the rest of the machine)."""
    path = root / image
    try:
        target, inside = path.resolve(), root.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL or half a character in it, links in a circle
        raise BadSampleError(sample_id, "image", f"image {image[:200]!r} can't be a path", place) from None
    if target.is_relative_to(inside):
        return path
    reason, remedy = f"image {image!r} leaves the image root {root}", "set image_root to a folder that holds it"
    if Path(os.path.normpath(inside / image)).is_relative_to(inside):
        reason += f" by a link to {target}"
        remedy = "set image_root to the folder that the links lead to, or mount it in their place"
    raise BadSampleError(sample_id, "image", f"{reason}; {remedy}", place)


def locate_image(root: Path, image: str, files: Collection[str], sample_id: str, place: str = "") -> str:
    """Where `image` lies: its path below `root`, or the reference as it is, which must point into one of `files`."""
    if without_span(image)[1] is not None:
        reason = f"{image!r} names a part of a video, which samples can't; cut the video"
        raise BadSampleError(sample_id, "image", reason, place)
    if without_change(image)[1]:
        reason = f"{image!r} names an altered image, which samples can't; write it as a file"
        raise BadSampleError(sample_id, "image", reason, place)
    if not is_stored(image):
        return str(resolve_image(root, image, sample_id, place))
    if str(ImageRef.of(image).file) not in files:
        raise BadSampleError(sample_id, "image", f"image {image!r} lies in another file than its sample", place)
    return image


def with_resolved_images(sample: Sample, root: Path, files: Collection[str]) -> Sample:
    """`sample` with its paths below `root`. Raises BadSampleError for an image outside it, or inside none of `files`.

    A sample with a fault comes back as it is: `check` refuses it before its images are looked for.
    """
    if sample.fault is not None:
        return sample
    return sample.model_copy(
        update={
            name: tuple(locate_image(root, image, files, sample.id, sample.place) for image in images)
            for name, images in images_of(sample).items()
        }
    )


def images_of(sample: Sample) -> dict[str, tuple[str, ...]]:
    """The fields of a sample that hold paths of images and videos."""
    rejected = sample.rejected_images if isinstance(sample, PreferencePair) else None
    return {"images": sample.images} | ({} if rejected is None else {"rejected_images": rejected})


class IndexedSamples(Sequence[Sample]):
    """Rows of an index as samples with their image paths resolved against `root`, each made when it is asked for.

    Asking raises BadSampleError when an image of the sample leaves the root.
    """

    def __init__(self, index: SampleIndex, rows: np.ndarray, root: Path, files: Sequence[str] = ()) -> None:
        """rows: int64, of the index; files: those that images may lie in.

        Raises BadSampleError for a path that leaves the root as it is written, and for an image inside another file.

        Links are followed when a sample is asked for: a look at every file would not be opening an index.
        """
        self.source, self.rows, self._root, self._files = index, rows, root, files
        for name in IMAGE_COLUMNS:
            images = self._columns(name)[name].combine_chunks()
            flat = pc.list_flatten(images)
            holders = pc.replace_substring_regex(flat, STORED, "")
            is_elsewhere = pc.invert(pc.is_in(holders, value_set=pa.array(files, pa.large_string())))
            doubtful = pc.if_else(
                pc.match_substring_regex(flat, STORED), is_elsewhere, pc.match_substring_regex(flat, UNLIKE_PATHS)
            )
            for row in np.unique(pc.list_parent_indices(images).filter(doubtful).to_numpy()):
                self[int(row)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return with_resolved_images(self.source[int(self.rows[index])], self._root, self._files)

    def unlocated(self) -> Iterator[Sample]:
        """Each sample in turn, its images as the index has them."""
        return (self.source[int(row)] for row in self.rows)

    def unchecked(self, index: int) -> tuple[Sample, dict[str, str]]:
        """A sample with its images below the root though one may leave it, and why those that do are refused.

        What decides on the rows of a step may not depend on the disk, which only the rank that opens an image looks at.
        """
        sample = self.source[int(self.rows[index])]
        below: dict[str, tuple[str, ...]] = {}
        refused: dict[str, str] = {}
        for name, images in images_of(sample).items():
            below[name] = self._below_root(images)
            for path, image in zip(below[name], images, strict=True):
                try:
                    locate_image(self._root, image, self._files, sample.id)
                except BadSampleError as error:
                    refused[path] = error.reason
        return sample.model_copy(update=below), refused

    def id_of(self, index: int) -> str:
        return self.source.field(int(self.rows[index]), "id")

    def place_read(self, index: int) -> str:
        """Where a sample was read, `file:line` or alike."""
        return self.source.field(int(self.rows[index]), "place")

    def image_names(self, index: int) -> tuple[str, ...]:
        """The paths of a sample's images as `self[index]` has them, unchecked."""
        return self._below_root(self.source.field(int(self.rows[index]), "images"))

    def _below_root(self, images: Sequence[str]) -> tuple[str, ...]:
        return tuple(image if is_stored(image) else str(self._root / image) for image in images)

    def image_paths(self, column: str = "images") -> pa.ListArray:
        """For each sample the paths of its images, resolved, unchecked; column: of `IMAGE_COLUMNS`."""
        images = self._columns(column)[column].combine_chunks()
        flat = pc.list_flatten(images)
        prefix, nothing = (pa.scalar(text, pa.large_string()) for text in (self._prefix(), ""))
        joined = pc.binary_join_element_wise(prefix, flat, nothing)
        resolved = pc.if_else(pc.match_substring_regex(flat, f"^/|{STORED}"), flat, joined)
        lengths = pc.fill_null(pc.list_value_length(images), 0).to_numpy()
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

    def opens_files(self) -> bool:
        """Whether any sample has a video or boxes: its tokens are known only once its files are opened."""
        table = self._columns("has_video", "has_boxes")
        return any(pc.any(table[name]).as_py() for name in table.column_names)

    def _columns(self, *names: str) -> pa.Table:
        table = self.source.table.select(list(names))
        return table if len(self.rows) == len(table) else table.take(pa.array(self.rows))


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
        number, inner = self.place_of(index % len(self))
        return self._parts[number][inner]

    def place_of(self, index: int) -> tuple[int, int]:
        """(number of the part, index in it) of the sample at `index` (not negative)."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + len(self._parts[number])
