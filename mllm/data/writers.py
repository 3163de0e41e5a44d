"""Writing samples so that a reader gives back the same: our JSON lines, parquet as the Hub has it, LLaVA's JSON."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm.conversation.pair import SIDES, PreferencePair
from mllm.conversation.schema import Sample, media_kinds
from mllm.data.readers.fields import PLACEHOLDER, VIDEO_PLACEHOLDER, RecordMedia
from mllm.data.readers.llava import read_llava_record
from mllm.data.readers.pairs import OF_ANSWERS
from mllm.errors import UserError
from mllm.files import atomic_file
from mllm.media.clip import DEFAULT_CLIP_LIMITS
from mllm.media.decode import DEFAULT_LIMITS
from mllm.media.ref import ImageRef, is_stored

ROWS_PER_GROUP = 100
MAX_GROUP_BYTES = 64 * 2**20  # of what is embedded: a row group is what a reader has to read at once
_NUMBERS = pa.list_(pa.float64())
REGION = pa.struct([("label", pa.string()), ("box", _NUMBERS), ("point", _NUMBERS), ("quad", _NUMBERS)])
OF_BOXES = [("boxes", pa.list_(REGION)), ("image", pa.int32()), ("unit", pa.string())]
PART = pa.struct([("type", pa.string()), ("text", pa.string()), *OF_BOXES])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.list_(PART))])
IMAGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
_WEIGHTS = pa.list_(pa.list_(pa.float64()))
PAIR = [
    *((name, pa.list_(PART)) for name in SIDES),
    *((f"{name}_weights", _WEIGHTS) for name in SIDES),
    ("rejected_images", pa.list_(pa.string())),
    ("context", pa.string()),
    ("margin", pa.float64()),
    ("scores", pa.string()),
]
Located = Callable[[str], str]


class SampleWriter(AbstractContextManager["SampleWriter"]):
    """Writes `path`, which has its name only once all is written and the block ends without an error."""

    def __init__(self, path: Path, by: str) -> None:
        """by: the command that writes; see `mllm.outputs.check_file`."""
        self._publishing = ExitStack()
        self.path, self.temporary = path, self._publishing.enter_context(atomic_file(path, by))
        self.count = 0

    def write(self, sample: Sample, located: Located) -> None:
        """Append a sample; located(image) is where one of its images lies on the disk.

        Raises UserError for what the format can't give back exactly, and for a sample with a fault.
        """
        if sample.fault is not None:
            raise sample.bad(sample.fault.kind, sample.fault.reason)
        self._write(sample, located)
        self.count += 1

    def _write(self, sample: Sample, located: Located) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._publishing:
            self._close()
            if error is not None:
                raise error


class _TextWriter(SampleWriter):
    opening, between, closing = "", "", ""

    def __init__(self, path: Path, by: str) -> None:
        super().__init__(path, by)
        self._file: IO[str] = open(self.temporary, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 (see _close)
        self._file.write(self.opening)

    def _write(self, sample: Sample, located: Located) -> None:
        inside = next((image for image in sample.images if is_stored(image)), None)
        if inside is not None:
            raise UserError(f"sample {sample.id!r}: its image {inside!r} lies inside a file; write to .parquet")
        self._file.write((self.between if self.count else "") + json.dumps(self._record(sample), ensure_ascii=False))

    def _record(self, sample: Sample) -> dict[str, Any]:
        raise NotImplementedError

    def _close(self) -> None:
        self._file.write(self.closing)
        self._file.close()


class JsonLinesWriter(_TextWriter):
    """One sample a line in the project's own schema."""

    between, closing = "\n", "\n"

    def _record(self, sample: Sample) -> dict[str, Any]:
        return record_of(sample)


def record_of(sample: Sample) -> dict[str, Any]:
    """A sample in the schema of the Hub, images and videos in a list of their own each; a pair as the reader `pairs` has it.

    An answer of a pair that is one stretch of words is text, another a list of parts.
    """
    record = sample.model_dump(mode="json", exclude_none=True)
    media = media_of(sample)
    if isinstance(sample, PreferencePair):
        record = {name: value for name, value in record.items() if name not in OF_ANSWERS or value not in ("", [])}
        for name in SIDES:
            if [part["type"] for part in record[name]] == ["text"]:
                record[name] = record[name][0]["text"]
    return record | {"images": list(media.images)} | ({"videos": list(media.videos)} if media.videos else {})


def media_of(sample: Sample) -> RecordMedia:
    """The images and the videos of a sample without a fault, apart."""
    pairs = list(zip(media_kinds(sample.messages), sample.images, strict=True))
    return RecordMedia(*(tuple(path for kind, path in pairs if kind == wanted) for wanted in ("image", "video")))


class LlavaWriter(_TextWriter):
    """LLaVA's JSON array. `source` and `kind`, which LLaVA doesn't know, are left out."""

    opening, between, closing = "[\n", ",\n", "\n]\n"

    def _record(self, sample: Sample) -> dict[str, Any]:
        if isinstance(sample, PreferencePair):
            raise UserError(f"sample {sample.id!r}: LLaVA's JSON has no pairs; write to .jsonl or .parquet")
        roles = {"user": "human", "assistant": "gpt", "system": "system"}
        media = media_of(sample)
        # LLaVA-Video's own data has the image's placeholder for a video, too.
        signs = {"image": PLACEHOLDER, "video": VIDEO_PLACEHOLDER if media.images else PLACEHOLDER}
        turns = [
            {
                "from": roles[m.role],
                "value": "".join(f"{signs[p.type]}\n" for p in m.content if p.type in signs) + m.text,
            }
            for m in sample.messages
        ]
        held = {"image": media.images, "video": media.videos}
        fields = {name: paths[0] if len(paths) == 1 else list(paths) for name, paths in held.items() if paths}
        record = {"id": sample.id} | fields | {"conversations": turns}
        if list(read_llava_record(str(self.path), record)) != [sample.model_copy(update={"source": "", "kind": ""})]:
            raise UserError(
                f"sample {sample.id!r} would come back from LLaVA's JSON as another: it has an image between its words, "
                f"boxes, blanks at the ends of a turn with an image, or {PLACEHOLDER} as text; write to .jsonl or .parquet"
            )
        return record


class ParquetWriter(SampleWriter):
    """Rows in the schema of the Hub. With `embed_images`, `images` and `videos` hold `{bytes, path}`, the files' bytes.

    Images that lie inside another file can't be referred to from this one: they have to be embedded. Whether it is a file of
    samples or of pairs is told by the first of them.
    """

    def __init__(self, path: Path, by: str, embed_images: bool = False) -> None:
        super().__init__(path, by)
        self._embed = embed_images
        self._writer: pq.ParquetWriter | None = None
        self._holds_pairs = False
        self._rows: list[dict[str, Any]] = []
        self._held_bytes = 0

    def _opened(self, holds_pairs: bool) -> pq.ParquetWriter:
        image = IMAGE if self._embed else pa.string()
        strings = [(name, pa.string()) for name in ("source", "kind")]
        columns = [("id", pa.string()), ("messages", pa.list_(MESSAGE))]
        columns += [("images", pa.list_(image)), ("videos", pa.list_(image)), *strings]
        self._holds_pairs = holds_pairs
        return pq.ParquetWriter(self.temporary, pa.schema(columns + (PAIR if holds_pairs else [])))

    def _write(self, sample: Sample, located: Located) -> None:
        is_pair = isinstance(sample, PreferencePair)
        if self._writer is None:
            self._writer = self._opened(is_pair)
        if is_pair != self._holds_pairs:
            raise UserError(f"sample {sample.id!r}: pairs and samples don't go into one file; write to .jsonl")
        row = _row_of(sample) if isinstance(sample, PreferencePair) else record_of(sample)
        if self._embed and row.get("rejected_images"):
            raise UserError(f"sample {sample.id!r}: its `rejected_images` can't be put into the file; write to .jsonl")
        if self._embed:
            media = media_of(sample)
            for name, noun, paths in (("images", "image", media.images), ("videos", "video", media.videos)):
                row[name] = [_embedded(path, located(path), noun) for path in paths]
                self._held_bytes += sum(len(value["bytes"]) for value in row[name])
        elif any(is_stored(image) for image in sample.images):
            raise UserError(f"sample {sample.id!r}: its images lie inside a file; embed the images")
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP or self._held_bytes >= MAX_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None, self.path
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
        self._rows, self._held_bytes = [], 0

    def _close(self) -> None:
        if self._writer is None:
            self._writer = self._opened(holds_pairs=False)
        if self._rows:
            self._flush()
        self._writer.close()


def _row_of(pair: PreferencePair) -> dict[str, Any]:
    """A pair as a row: its answers as parts, and its scores, whose names differ from row to row, as JSON."""
    row = record_of(pair)
    for name in SIDES:
        row[name] = [{"type": "text", "text": row[name]}] if isinstance(row[name], str) else row[name]
    return row | ({"scores": json.dumps(row["scores"], ensure_ascii=False)} if "scores" in row else {})


def _embedded(name: str, location: str, noun: str) -> dict[str, Any]:
    limits = DEFAULT_LIMITS if noun == "image" else DEFAULT_CLIP_LIMITS
    content = ImageRef.of(location, noun).read(limits.max_bytes)
    return {"bytes": content, "path": None if is_stored(location) else name}


def open_writer(path: Path, by: str, embed_images: bool = False) -> SampleWriter:
    """A writer by the suffix of `path`: .jsonl, .parquet, or .json for LLaVA's. Raises UserError for another."""
    if embed_images and path.suffix != ".parquet":
        raise UserError(f"{path}: only .parquet can hold images")
    if path.suffix == ".parquet":
        return ParquetWriter(path, by, embed_images)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: samples can be written as .jsonl, .parquet, or .json (LLaVA's)")
    return JsonLinesWriter(path, by) if path.suffix == ".jsonl" else LlavaWriter(path, by)
