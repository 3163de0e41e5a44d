"""Where an image or a video is: one type for a file, a part of a larger file, bytes in memory, and a folder of frames.

In samples, on the disk and in memory, an image is a string that costs nothing until it is read: a path, or what names an
image inside a file. `tar:OFFSET:SIZE:PATH` is a member of an uncompressed tar, `parquet:ROW:NUMBER:PATH` the NUMBER-th
image of a row: the NUMBER-th in its column `images` or `image`, or that of the NUMBER-th of its columns `image_1`,
`image_2`, … (`media_columns`), which hold `{bytes, path}`, as the Hub's data sets do, or the bytes alone.
`parquet-video:ROW:NUMBER:PATH` is a video of its column `videos` (or `video`), `arrow:ROW:NUMBER:PATH` an image of an Arrow
file, in columns as those of parquet. What a request names by a URL or holds in one is bytes from the door on.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.media.altered import without_change
from mllm.media.span import without_span

ImageSource = str | Path | bytes
IMAGE_SUFFIXES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
VIDEO_SUFFIXES = ("avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv")
MEDIA_COLUMNS = {"parquet": ("images", "image"), "parquet-video": ("videos", "video")}
DECODED = "decoded_image"
ARROW = "arrow"
STORED = r"^(tar|parquet|parquet-video|arrow):([0-9]+):([0-9]+):"  # for pyarrow, too
MAX_NAME_CHARS = 200
_STORED = re.compile(STORED)
_NUMBERED = re.compile(r"^[Ii]mage_([0-9]+)$")


def tar_reference(path: str, offset: int, size: int) -> str:
    return f"tar:{offset}:{size}:{path}"


def parquet_reference(path: str, row: int, number: int, kind: str = "parquet") -> str:
    """kind: which of MEDIA_COLUMNS it is in, or ARROW for the images of an Arrow file."""
    return f"{kind}:{row}:{number}:{path}"


def is_stored(image: ImageSource) -> bool:
    """Whether `image` names an image inside a larger file."""
    return isinstance(image, str) and _STORED.match(image) is not None


@dataclass(frozen=True)
class ImageRef:
    """One image or video, wherever it is: `of` makes it of what samples and requests hold.

    name: what messages call it. file: what it is or lies in, None for bytes in memory, which are its `content`. part: of
    what lies inside a file ("tar", offset, size) or ("parquet" or "parquet-video", row, number in it). noun: "image" or
    "video", for messages. span_ms: from when to when, of a part of a video (`mllm.media.span`). change: what is done to it
    as it is decoded, empty for nothing (`mllm.media.altered`).
    """

    name: str
    file: Path | None = None
    part: tuple[str, int, int] | None = None
    content: bytes | None = None
    noun: str = "image"
    span_ms: tuple[int, int] | None = None
    change: str = ""

    @classmethod
    def of(cls, source: ImageSource, noun: str = "image") -> "ImageRef":
        if isinstance(source, bytes):
            return cls(f"{len(source)} bytes", content=source, noun=noun)
        name = repr(str(source))[:MAX_NAME_CHARS]
        source, change = without_change(source) if isinstance(source, str) else (source, "")
        whole, span_ms = without_span(source) if isinstance(source, str) else (source, None)
        found = _STORED.match(whole) if isinstance(whole, str) else None
        if found is None:
            return cls(name, Path(whole), noun=noun, span_ms=span_ms, change=change)
        part = (found[1], int(found[2]), int(found[3]))
        return cls(name, Path(found.string[found.end() :]), part, noun=noun, span_ms=span_ms, change=change)

    @property
    def is_there(self) -> bool:
        """Whether its file or folder is there, or it is in memory."""
        return self.file is None or self.file.exists()

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, of which each picture is a frame of a video."""
        return self.file is not None and self.part is None and self.file.is_dir()

    def read(self, max_bytes: int) -> bytes:
        """Its encoded bytes. Raises UserError where they aren't there, and for a member of a tar of more than `max_bytes`."""
        try:
            if self.file is None:
                return self.content or b""
            if self.part is None:
                return self.file.read_bytes()
            kind, first, second = self.part
            if kind in MEDIA_COLUMNS:
                return _parquet_image(str(self.file), kind, first, second)
            if kind == ARROW:
                return _arrow_image(str(self.file), first, second)
            if second > max_bytes:
                raise UserError(f"{self.noun} {self.name} has {second} bytes; the limit is {max_bytes}")
            with open(self.file, "rb") as file:
                file.seek(first)
                return file.read(second)
        except UserError:
            raise
        except Exception as error:
            # What pyarrow raises for a damaged page is listed nowhere; any of it means that the image can't be had.
            told = error.strerror if isinstance(error, OSError) else None
            reason = told or next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{self.noun} {self.name} can't be read: {reason}") from None

    def identity(self) -> int:
        """A negative number that names it: by its bytes, or by its file's path, size and time of change.

        A folder is named by those of all that is in it. Raises UserError where the file isn't there.
        """
        if self.file is None:
            digest = hashlib.sha256(self.content or b"").digest()
        else:
            if not self.is_there:
                raise UserError(f"{self.noun} {self.name} does not exist")
            files = sorted(self.file.iterdir()) if self.is_folder else [self.file]
            states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            changes = [self.change] if self.change else []
            named = (self.part, str(self.file.absolute()), states, *(self.span_ms or ()), *changes)
            digest = hashlib.sha256(repr(named).encode("utf-8", "surrogatepass")).digest()
        return -1 - int.from_bytes(digest[:8], "big")


def media_columns(schema: Any, kind: str) -> tuple[str, ...]:
    """The columns of a parquet file that hold the bytes of images, or of videos, by its Arrow schema, in their order.

    That is `images` or `image`; else `image_1`, `image_2` and so on (or `Image_0`, …), of which a row may fill some; else
    `decoded_image`. Of videos it is `videos` or `video`. kind: a key of MEDIA_COLUMNS.
    """
    held = [name for name in schema.names if _is_binary(element_type(schema.field(name).type))]
    one = next((name for name in MEDIA_COLUMNS[kind] if name in held), None)
    if one is not None or kind != "parquet":
        return () if one is None else (one,)
    numbered = sorted((name for name in held if _NUMBERED.match(name)), key=lambda name: int(name.rpartition("_")[2]))
    return tuple(numbered) or ((DECODED,) if DECODED in held else ())


def element_type(kind: Any) -> Any:
    """The type of the items of a list, of anything else the type itself."""
    return kind.value_type if is_list(kind) else kind


def is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return any(is_kind(kind) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary))


def _parquet_image(path: str, kind: str, row: int, number: int) -> bytes:
    file, starts = _parquet_file(path)
    columns = media_columns(file.schema_arrow, kind) or MEDIA_COLUMNS[kind][:1]
    group = bisect_right(starts, row) - 1
    value = _row_group(path, group, columns[number] if len(columns) > 1 else columns[0])[row - starts[group]].as_py()
    return _bytes_of(value, row, number)


def _arrow_image(path: str, row: int, number: int) -> bytes:
    batches, starts = _arrow_file(path)
    columns = media_columns(batches[0].schema, "parquet") or MEDIA_COLUMNS["parquet"][:1]
    batch = bisect_right(starts, row) - 1
    column = batches[batch].column(columns[number] if len(columns) > 1 else columns[0])
    return _bytes_of(column[row - starts[batch]].as_py(), row, number)


def _bytes_of(value: Any, row: int, number: int) -> bytes:
    """The bytes of the `number`-th image of a row's value: images, or one alone."""
    image = value[number] if isinstance(value, list) else value
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise ValueError(f"row {row} holds no bytes")
    return content


def arrow_batches(path: str) -> Sequence[Any]:
    """The record batches of an Arrow file in either layout, mapped into memory. Raises OSError or pyarrow's own errors."""
    import pyarrow as pa

    source = pa.memory_map(path)
    try:
        return pa.ipc.open_stream(source).read_all().to_batches()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all().to_batches()


@lru_cache(maxsize=16)
def _arrow_file(path: str) -> tuple[Sequence[Any], list[int]]:
    """The record batches of an Arrow file, and the first row of each."""
    batches = arrow_batches(path)
    return batches, [0, *accumulate(batch.num_rows for batch in batches)][:-1]


@lru_cache(maxsize=16)
def _parquet_file(path: str) -> tuple[Any, list[int]]:
    """The open file, and the first row of each of its row groups."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)
    starts = [0]
    for group in range(file.metadata.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts[:-1]


@lru_cache(maxsize=4)
def _row_group(path: str, group: int, column: str) -> Any:
    """One column of a row group: neighbours are often wanted together, and a row group is what can be read."""
    file, _ = _parquet_file(path)
    return file.read_row_group(group, columns=[column])[column].combine_chunks()
