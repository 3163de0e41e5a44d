"""Records of a file of any container that is known here, and readers made of what turns one record into samples.

What a record says that would change training and that no reader reads is a fault of its sample, never passed over.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import Fault, Sample
from mllm.data.readers.arrow import read_arrow
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.fields import SYSTEM_FIELDS, without_nulls
from mllm.data.readers.json_lines import BOM, read_json
from mllm.data.readers.parquet import read_parquet
from mllm.data.readers.tables import read_csv, read_tsv
from mllm.data.readers.tar import read_tar
from mllm.errors import UserError
from mllm.media.remote import is_url

CONTAINERS: dict[str, Callable[[Path, OnError], Iterator[tuple[str, Any]]]] = {
    ".arrow": read_arrow,
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".parquet": read_parquet,
    ".tar": read_tar,
    ".tsv": read_tsv,
}


# What is read behind a URL, as it comes, by `datasets`; nothing is kept on the disk.
BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
# Where images are put by those who don't call them `image` or `images`.
IMAGE_FIELDS = frozenset(
    [
        f"{noun}{tail}"
        for noun in ("image", "img", "picture", "photo")
        for tail in ("_path", "_paths", "_file", "_files")
    ]
    + [f"image{tail}" for tail in ("_url", "_urls", "_list", "_base64", "_bytes", "_name")]
    + ["img", "imgs", "picture", "pictures", "photo", "photos", "frame", "frames", "jpg", "jpeg", "png", "webp"]
)
IMAGE_NAME = re.compile(r"\.(avif|bmp|gif|jpe?g|png|tiff?|webp)$", re.IGNORECASE)
LABELS = ("id", "source", "kind")
MEDIA_FIELDS = frozenset(
    [f"{noun}{tail}" for noun in ("video", "audio") for tail in ("", "s", "_path", "_paths", "_file", "_url")]
)
MEDIA_PLACEHOLDER = re.compile(r"^\s*<(video|audio)>|<(video|audio)>\s*$")
# What a sample says about how to train on it, and what a turn says.
OF_PAIRS = ("chosen", "rejected", "chosen_response", "rejected_response")
OF_SAMPLES = {
    **dict.fromkeys(("tools", "functions"), "tools"),
    **dict.fromkeys(OF_PAIRS, "preference pairs (which the reader `pairs` reads)"),
    **dict.fromkeys(("weight", "loss_weight", "sample_weight"), "weights of samples"),
    "history": "earlier turns outside the conversation",
    "loss_mask": "a choice of what is learned",
}
OF_TURNS = {
    **dict.fromkeys(("tool_calls", "function_call"), "tool calls"),
    **dict.fromkeys(("weight", "loss_weight"), "weights of turns"),
    **dict.fromkeys(("loss", "loss_mask", "mask", "train", "training"), "a choice of what is learned"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "reasoning apart from the answer"),
}
TURNS = ("messages", "conversations", "prompt", "completion")
NO_PATHS = (
    (re.compile(r"data:"), "is a data URI", "write it to a file and give the path, or its bytes into a parquet column"),
    (re.compile(r"file:"), "is a file URI", "give the path itself, from the source's image_root on"),
    (re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://"), "is a URL", "download the image and give its path below image_root"),
    (
        re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=\s]*$|[A-Za-z0-9+/\s]{400,}={0,2}\s*$"),
        "is base64 text",
        "write it to a file and give the path, or its bytes into a parquet column",
    ),
)
_WATCHED = MEDIA_FIELDS | OF_SAMPLES.keys() | set(SYSTEM_FIELDS)


def read_records(path: Path | str, on_error: OnError = raise_error) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs; a place is `file:line`, `file[index]` or `file:key`.

    A record that can't be read goes to `on_error` as a BadRecordError; if that returns, the next one follows. Raises
    UserError for a file that can't be read at all.
    """
    if is_url(path):
        records = read_remote(str(path))
    else:
        path = Path(path)
        records = _container(path)(path, on_error)
    for place, record in records:
        if isinstance(record, dict):
            yield place, record
        else:
            on_error(BadRecordError(place, f"expected an object, found {type(record).__name__}"))


def _container(path: Path) -> Callable[[Path, OnError], Iterator[tuple[str, Any]]]:
    """What reads the records of a file: told by its suffix, of another suffix JSON where it begins so."""
    if path.suffix in CONTAINERS:
        return CONTAINERS[path.suffix]
    with open(path, "rb") as file:
        if file.read(64).removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
            return read_json
    raise UserError(f"{path}: unknown kind of file; known are {', '.join(sorted(CONTAINERS))}")


def read_remote(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs of JSON lines or parquet rows. Raises UserError when the file can't be opened or read."""
    builder = BUILDERS.get(Path(url).suffix)
    if builder is None:
        raise UserError(f"{url}: only {', '.join(BUILDERS)} can be streamed from a URL")
    from datasets import load_dataset

    try:
        for number, record in enumerate(load_dataset(builder, data_files=url, split="train", streaming=True), 1):
            if any(isinstance(record.get(name), dict) for name in ("image", "images")):
                raise UserError(f"{url}: holds images, which can't be streamed from a URL; download the file")
            yield f"{url}:{number}", without_nulls(record)
    except UserError:
        raise
    except Exception as error:
        # What a file system behind a URL raises is its own affair: any of it means that the file can't be had.
        raise UserError(f"{url}: can't be streamed: {type(error).__name__}: {error}") from None


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


def unread_fault(record: dict[str, Any], sample: Sample) -> Fault | None:
    """The first thing in `record` that `sample`, made of it, leaves out and that training would need."""
    if record.keys() & _WATCHED:
        fault = _field_fault(record, sample)
        if fault is not None:
            return fault
    for name in TURNS:
        for turn in record[name] if isinstance(record.get(name), list) else ():
            fault = _setting_fault(turn, OF_TURNS, " in a turn") if isinstance(turn, dict) and len(turn) > 2 else None
            if fault is not None:
                return fault
    for message in sample.messages:
        left = MEDIA_PLACEHOLDER.search(message.text) if message.role == "user" else None
        if left is not None:
            remedy = "name its videos `video` or `videos`" if "video" in left[0] else "sound isn't read; remove it"
            return Fault(kind="unread", reason=f"has the placeholder {left[0].strip()} and nothing for it; {remedy}")
    if not sample.images:
        return _hidden_image_fault(record)
    return next(filter(None, map(_image_fault, sample.images)), None)


def _field_fault(record: dict[str, Any], sample: Sample) -> Fault | None:
    shows_video = any(part.type == "video" for message in sample.messages for part in message.content)
    for name in sorted(MEDIA_FIELDS & record.keys()):
        if name.startswith("video") and shows_video:
            continue
        if _says_something(record[name]):
            remedy = (
                "call its video `video`, in a format whose reader takes videos"
                if name.startswith("video")
                else ("sound isn't read; remove the sample")
            )
            return Fault(kind="unread", reason=f"has `{name}`, which isn't read; {remedy}")
    system = sample.messages[0].text if sample.messages and sample.messages[0].role == "system" else None
    for name in SYSTEM_FIELDS:
        if _says_something(record.get(name)) and record[name] != system:
            reason = f"has `{name}` beside another system turn, or not as text; have one system turn, as text"
            return Fault(kind="unread", reason=reason)
    read = OF_PAIRS if isinstance(sample, PreferencePair) else ()
    return _setting_fault({name: value for name, value in record.items() if name not in read}, OF_SAMPLES, "")


def _hidden_image_fault(record: dict[str, Any]) -> Fault | None:
    names = [
        str(name)
        for name, value in record.items()
        if (name in IMAGE_FIELDS and _says_something(value))
        or (name not in LABELS and isinstance(value, str) and IMAGE_NAME.search(value))
    ]
    if not names:
        return None
    reason = f"has no `image` or `images`, but `{'`, `'.join(names)}`; call its image `image`, or remove the key"
    return Fault(kind="image_count", reason=reason)


def _setting_fault(holder: dict[str, Any], settings: dict[str, str], where: str) -> Fault | None:
    for name in sorted(holder.keys() & settings.keys()):
        value = holder[name]
        is_neutral = value in (True, 1) if isinstance(value, (bool, int, float)) else not _says_something(value)
        if not is_neutral:
            reason = f"has `{name}`{where}, and {settings[name]} are not read; remove the key, or the sample"
            return Fault(kind="unread", reason=reason)
    return None


def _says_something(value: Any) -> bool:
    """Whether `value` is there: nulls and what is empty, deep inside too, say nothing."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_says_something, value))
    return value is not None and value != "" and value != b""


def _image_fault(image: str) -> Fault | None:
    reason = not_a_path(image)
    return None if reason is None else Fault(kind="image", reason=reason)


def not_a_path(image: str) -> str | None:
    """What `image` is where it is no path, and what to do; None for what may be a path."""
    for pattern, what, remedy in NO_PATHS:
        if pattern.match(image):
            shown = image if len(image) <= 60 else f"{image[:40]}…"
            return f"image {shown!r} {what}, not a path; {remedy}"
    return None
