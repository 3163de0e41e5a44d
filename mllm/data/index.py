"""Samples of a source file, read and checked once, then memory-mapped from an Arrow file that every process shares.

The file lies in the cache directory (`MLLM_CACHE_DIR`, else `~/.cache/mllm`) under a key made of the source's path, size
and time of change, the reader, and the code of the readers and the schema: whatever would change a sample changes the key.
Opening costs no parsing; a sample becomes an object when it is asked for.
"""

import bisect
import fcntl
import hashlib
import inspect
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, TypeAdapter

from mllm.conversation.boxes import Region
from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import Fault, Message, Sample, boxes_of, media_kinds
from mllm.data.readers import READERS, Reader
from mllm.data.readers.errors import raise_error
from mllm.data.readers.records import PlacedSamples, read_with_places
from mllm.errors import UserError
from mllm.files import hash_files
from mllm.settings import expanded

logger = logging.getLogger(__name__)

FORMAT_VERSION = 5
ROWS_PER_BATCH = 4096
CACHE_VARIABLE = "MLLM_CACHE_DIR"
NO_CACHE = "off"
SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("messages", pa.large_string()),
        ("images", pa.list_(pa.large_string())),
        ("has_video", pa.bool_()),
        ("has_boxes", pa.bool_()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("text_chars", pa.int32()),
        ("place", pa.large_string()),
        ("fault", pa.large_string()),
        ("rejected_images", pa.list_(pa.large_string())),
        ("pair", pa.large_string()),
    ]
)
# What a pair is beside its question; null in the row of a sample.
_OF_PAIR = PreferencePair.model_fields.keys() - Sample.model_fields.keys() - {"rejected_images"}
# What is no number in a box comes back, so that the sample is refused with its line and not the index.
_MESSAGES = TypeAdapter(tuple[Message, ...], config=ConfigDict(ser_json_inf_nan="constants"))


class SampleIndex:
    """The samples of one source, file after file, in file order; image paths are as the file gives them, in normal form.

    files: (key, number of samples) of each file's index.
    """

    def __init__(self, table: pa.Table, files: tuple[tuple[str, int], ...]) -> None:
        self.table, self.files = table, files
        self._batches = table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches]).tolist()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> Sample:
        """The sample at `row` (not negative), made anew at every call."""
        values = {name: self.field(row, name) for name in ("id", "images", "source", "kind", "place", "fault")}
        messages = _MESSAGES.validate_json(self.field(row, "messages"))
        fault = None if values["fault"] is None else Fault.model_validate_json(values["fault"])
        values |= {"messages": messages, "images": tuple(values["images"]), "fault": fault}
        pair = self.field(row, "pair")
        if pair is None:
            return Sample(**values)
        return PreferencePair(**values | json.loads(pair), rejected_images=self.field(row, "rejected_images"))

    def field(self, row: int, name: str) -> Any:
        """One field of the sample at `row`, as it is stored."""
        number = bisect.bisect_right(self._ends, row)
        batch = self._batches[number]
        return batch.column(name)[row - self._ends[number] + batch.num_rows].as_py()

    def rows_of(self, kinds: tuple[str, ...] | None, origins: tuple[str, ...] | None) -> np.ndarray:
        """int64 rows whose kind is in `kinds` and whose source is in `origins`; None stands for all."""
        kept = np.ones(len(self), dtype=bool)
        for name, wanted in (("kind", kinds), ("source", origins)):
            if wanted is not None:
                kept &= pc.is_in(self.table[name], value_set=pa.array(wanted, pa.string())).to_numpy()
        return np.flatnonzero(kept)


def join_indexes(indexes: Sequence[SampleIndex]) -> SampleIndex:
    """The samples of several files in turn."""
    if len(indexes) == 1:
        return indexes[0]
    return SampleIndex(
        pa.concat_tables([index.table for index in indexes]), tuple(file for index in indexes for file in index.files)
    )


_open: WeakValueDictionary[str, SampleIndex] = WeakValueDictionary()


def open_index(path: Path, reader_name: str) -> SampleIndex:
    """The index of `path`, from the cache or written to it.

    Of several processes that want the same index one writes it and the others wait. Raises UserError for what the
    reader can't read, and for a cache directory that can't be written.
    """
    reader = READERS.get(reader_name)
    key = index_key(path, reader_name, reader)
    index = _open.get(key)
    if index is None:
        table = _cached_table(path, reader, key)
        index = _open[key] = SampleIndex(table, ((key, table.num_rows),))
    return index


def index_key(path: Path, reader_name: str, reader: Reader) -> str:
    """What the index of a file is called. Samples without an id are named after the path as it was given."""
    status = path.stat()
    parts = (FORMAT_VERSION, path, path.resolve(), status.st_size, status.st_mtime_ns, reader_name, _code_hash(reader))
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _code_hash(reader: Reader) -> str:
    """Of all that turns a file into rows: a mended reader must not meet the rows of a broken one."""
    files = {
        Path(__file__),
        *(Path(inspect.getfile(kind)) for kind in (Sample, PreferencePair, Region, inspect.unwrap(reader))),
    }
    files |= set((Path(__file__).parent / "readers").glob("*.py"))
    return hash_files(sorted(files))


def cache_directory() -> Path | None:
    """Where indexes are kept; None when `MLLM_CACHE_DIR` is `off`."""
    given = expanded(os.environ.get(CACHE_VARIABLE, ""))
    if given == NO_CACHE:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given) if given else Path(home) / "mllm") / "index"


def _cached_table(path: Path, reader: Reader, key: str) -> pa.Table:
    directory = cache_directory()
    if directory is None:
        with tempfile.TemporaryDirectory() as private:
            # The mapping outlives the name.
            return _mapped(_write(_placed(reader, path), path, Path(private) / "index.arrow"))
    final = directory / f"{key}.arrow"
    if not final.is_file():
        with writing_alone(directory, key, f"the index of {path}"):
            if not final.is_file():
                _write(_placed(reader, path), path, final)
    return _mapped(final)


def read_cached_index(directory: Path, key: str) -> SampleIndex:
    """The index that `open_index` wrote to `directory` under `key`, without a look at the file it was made of."""
    table = _mapped(directory / f"{key}.arrow")
    return SampleIndex(table, ((key, table.num_rows),))


def _placed(reader: Reader, path: Path) -> PlacedSamples:
    return read_with_places(reader, path, raise_error)


def _mapped(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


@contextmanager
def writing_alone(directory: Path, key: str, what: str) -> Iterator[None]:
    """Hold the lock of `key` in the cache directory: of several processes one writes and the others wait.

    Raises UserError when the directory can't be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f"{key}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(
            f"can't write {what} to {directory}: {error}; set {CACHE_VARIABLE} to a directory with room, or to {NO_CACHE}"
        ) from None


def _write(samples: PlacedSamples, path: Path, final: Path) -> Path:
    """Write an index under a temporary name, flush it to the disk and give it its name."""
    started = time.monotonic()
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with open(temporary, "wb") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                rows: list[tuple[object, ...]] = []
                for place, sample in samples:
                    rows.append(_row(place, sample))
                    count += 1
                    if len(rows) == ROWS_PER_BATCH:
                        writer.write_batch(_batch(rows))
                        rows = []
                if rows:
                    writer.write_batch(_batch(rows))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    logger.info("indexed %d samples of %s in %.1f s", count, path, time.monotonic() - started)
    return final


def _row(place: str, sample: Sample) -> tuple[object, ...]:
    # What a faulty sample calls its images may be no paths; it is refused before any is looked for.
    images = [] if sample.fault else [str(Path(image)) for image in sample.images]
    rejected_images, pair, sides = None, None, [sample]
    if isinstance(sample, PreferencePair):
        if sample.rejected_images is not None and not sample.fault:
            rejected_images = [str(Path(image)) for image in sample.rejected_images]
        pair = json.dumps(sample.model_dump(mode="json", include=_OF_PAIR, exclude_none=True), ensure_ascii=False)
        sides = [sample, *sample.sides]
    messages = _MESSAGES.dump_json(sample.messages).decode()
    chars = max(sum(len(m.text) for m in side.messages) for side in sides)
    fault = sample.fault.model_dump_json() if sample.fault else None
    has_video = "video" in media_kinds(sample.messages)
    has_boxes = any(boxes_of(side.messages) for side in sides)
    labels = sample.source, sample.kind
    return (sample.id, messages, images, has_video, has_boxes, *labels, chars, place, fault, rejected_images, pair)


def _batch(rows: list[tuple[object, ...]]) -> pa.RecordBatch:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
