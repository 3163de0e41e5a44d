"""Records of a file of any container that is known here, and readers made of what turns one record into samples."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.json_lines import read_json
from mllm.data.readers.parquet import read_parquet
from mllm.data.readers.remote import read_remote
from mllm.data.readers.tables import read_csv, read_tsv
from mllm.data.readers.tar import read_tar
from mllm.data.readers.unread import unread_fault
from mllm.errors import UserError
from mllm.media.remote import is_url

CONTAINERS: dict[str, Callable[[Path, OnError], Iterator[tuple[str, Any]]]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".parquet": read_parquet,
    ".tar": read_tar,
    ".tsv": read_tsv,
}


def read_records(path: Path | str, on_error: OnError = raise_error) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs; a place is `file:line`, `file[index]` or `file:key`.

    A record that can't be read goes to `on_error` as a BadRecordError; if that returns, the next one follows. Raises
    UserError for a file that can't be read at all.
    """
    if is_url(path):
        records = read_remote(str(path))
    else:
        path = Path(path)
        if path.suffix not in CONTAINERS:
            raise UserError(f"{path}: unknown kind of file; known are {', '.join(sorted(CONTAINERS))}")
        records = CONTAINERS[path.suffix](path, on_error)
    for place, record in records:
        if isinstance(record, dict):
            yield place, record
        else:
            on_error(BadRecordError(place, f"expected an object, found {type(record).__name__}"))


PlacedSamples = Iterator[tuple[str, Sample]]
SamplesOf = Callable[[str, dict[str, Any]], Iterable[Sample]]


def record_reader(samples_of: SamplesOf) -> Callable[..., Iterator[Sample]]:
    """The reader `(path, on_error=raise_error) -> samples` made of a function from (place, record) to samples."""

    @wraps(samples_of)
    def read(path: Path | str, on_error: OnError = raise_error) -> Iterator[Sample]:
        return (sample for _, sample in with_places(path, on_error))

    def with_places(path: Path | str, on_error: OnError) -> PlacedSamples:
        for place, record in read_records(path, on_error):
            try:
                samples = list(samples_of(place, record))
            except BadRecordError as error:
                on_error(error)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                on_error(BadRecordError(place, f"{where}: {first['msg']}"))
            else:
                yield from ((place, _with_fault(sample, record)) for sample in samples)

    read.with_places = with_places  # type: ignore[attr-defined]
    return read


def _with_fault(sample: Sample, record: dict[str, Any]) -> Sample:
    """`sample`, with what it leaves out of `record` as its fault if the reader found none."""
    fault = None if sample.fault else unread_fault(record, sample)
    return sample if fault is None else sample.model_copy(update={"fault": fault})


def read_with_places(reader: Callable[..., Iterator[Sample]], path: Path | str, on_error: OnError) -> PlacedSamples:
    """(place, sample) pairs of a reader; of one that reads no records, the place is the file."""
    with_places = getattr(reader, "with_places", None)
    if with_places is not None:
        return with_places(path, on_error)
    samples = reader(path) if on_error is raise_error else reader(path, on_error)
    return ((str(path), sample) for sample in samples)
