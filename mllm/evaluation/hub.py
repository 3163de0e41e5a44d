"""Benchmarks read from a data set of the hub: `NAME@SOURCE`, SOURCE a directory of its parquet files or its id."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm.data.readers.errors import raise_error
from mllm.data.readers.parquet import read_parquet
from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, HubLayout, Item, TableRow
from mllm.evaluation.medium import Medium, shown
from mllm.media.decode import image_bytes
from mllm.media.ref import media_columns


def from_hub(name: str, kind: type[Benchmark], source: str) -> Benchmark:
    """The benchmark `name` with its own prompt and scorer and the questions of `source`.

    Raises UserError for a benchmark that no data set of the hub holds in a layout that is known here.
    """
    if not kind.hub:
        known = (other for other in BENCHMARKS if BENCHMARKS.get(other).hub)
        raise UserError(f"{name} isn't read from the hub; these are: {', '.join(known)}")

    class FromHub(kind):  # type: ignore[valid-type, misc]
        default_data = Path()

        def items(self, data: Path) -> list[Item]:
            return read_items(kind, source)

    return FromHub()


class ParquetRelease(Benchmark):
    """A benchmark whose official release is its data set of the hub: a copy of that lies in `DATA/{folder}`."""

    def items(self, data: Path) -> list[Item]:
        root = data / self.folder
        if not root.is_dir():
            raise UserError(f"{root} does not exist; get it from {self.card.source}")
        try:
            return read_items(type(self), str(root))
        except UserError as error:
            raise UserError(f"{error}; get it again from {self.card.source}") from None


def read_items(kind: type[Benchmark], source: str) -> list[Item]:
    """The items of a data set, in the order of its rows.

    Raises UserError when it isn't there, has no file of the split, or has other columns than any layout of the benchmark.
    """
    layouts = kind.hub
    root = _directory(source, layouts)
    found = [(layout, files) for layout in layouts if (files := _files(root, layout))]
    if not found:
        wanted = " or ".join(pattern for layout in layouts for pattern in layout.files.values())
        raise UserError(f"{root} has no {wanted}; give a copy of the data set {layouts[0].repository}")
    first = found[0][1][0][1]
    layout, files = next((pair for pair in found if not _missing_columns(pair[0], first)), found[0])
    for _, path in files:
        missing = _missing_columns(layout, path)
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}, as {layout.repository} has")
    return [item for row in _rows(root, layout, files) for item in _items(layout, row)]


def _directory(source: str, layouts: Sequence[HubLayout]) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{source} does not exist; give a directory, or an id such as {layouts[0].repository}")
    from huggingface_hub import snapshot_download

    patterns = [pattern for layout in layouts for pattern in layout.patterns]
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=patterns))
    # The hub's errors share no base class of their own: they come from its own, httpx's and the file system's families.
    except Exception as error:
        raise UserError(
            f"data set {source!r} is neither a directory nor to be had from the hub ({type(error).__name__})"
        ) from None


def _files(root: Path, layout: HubLayout) -> list[tuple[str, Path]]:
    """(split, file) of the questions; files may also lie in `root` itself."""
    return [
        (split, path)
        for split, pattern in layout.files.items()
        for path in sorted(root.glob(pattern)) or sorted(root.glob(Path(pattern).name))
    ]


def _missing_columns(layout: HubLayout, path: Path) -> list[str]:
    try:
        there = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None
    wanted = (*layout.columns, *(() if layout.image_files else (layout.image,)))
    return [column for column in wanted if column not in there]


def _rows(root: Path, layout: HubLayout, files: Sequence[tuple[str, Path]]) -> Iterator[TableRow]:
    images = _separate_images(root, layout)
    first_of: dict[str, tuple[Medium, ...]] = {}
    numbers = count()
    for split, path in files:
        columns = media_columns(pq.read_schema(path), "parquet")
        for place, record in read_parquet(path, raise_error):
            number = next(numbers)
            if layout.image_files:
                own = shown(images.get(str(record.get("imageId"))))
                if not own:
                    raise UserError(f"{place}: image {record.get('imageId')!r} is in no {layout.image_files} of {root}")
            else:
                own = tuple(Medium(source) for column in columns for source in record.get(column) or ())
            group = _group(layout, record, place, own, number)
            # What shows one image shares its reference; several may be shown in part by another of the group.
            yield TableRow(record, number, split, first_of.setdefault(group, own) if len(own) == 1 else own, group)


def _group(layout: HubLayout, record: Mapping[str, Any], place: str, media: Sequence[Medium], number: int) -> str:
    if not media:
        return f"row {number}"
    try:
        return layout.group_of(record) or _digest(media)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place}: does not say which image it is about, as {layout.repository} does: {error!r}"
        ) from None


def _digest(media: Sequence[Medium]) -> str:
    return hashlib.sha256(b"".join(image_bytes(medium.source) for medium in media)).hexdigest()[:16]


def _separate_images(root: Path, layout: HubLayout) -> dict[str, str]:
    """id → reference, of the images that lie apart from the questions."""
    if layout.image_files is None:
        return {}
    paths = sorted(root.glob(layout.image_files))
    if not paths:
        raise UserError(f"{root} has no {layout.image_files}; give a copy of the data set {layout.repository}")
    rows = (record for path in paths for _, record in read_parquet(path, raise_error))
    return {str(record.get("id")): record["image"][0] for record in rows if record.get("image")}


def _items(layout: HubLayout, row: TableRow) -> Sequence[Item]:
    try:
        return layout.asks(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"row {row.number} of {row.split} isn't as in {layout.repository}: {error!r}") from None
