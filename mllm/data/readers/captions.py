"""Captioned images as records: rows of CSV, TSV or parquet, JSON lines, or webdataset members `jpg` and `txt`."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import asked_about_images, found, image_paths, text_field
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS

IMAGE_FIELDS = ("images", "image", "image_path", "filepath", "file_name", "filename")
CAPTION_FIELDS = ("caption", "captions", "text", "txt", "title")


@READERS.register("captions")
@record_reader
def read_captions(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """A sample for each caption of a record's image: the user shows it and says nothing, as in LLaVA's first stage."""
    images = image_paths(place, record, IMAGE_FIELDS)
    if not images:
        raise BadRecordError(
            place, f"expected an image in one of the fields {', '.join(IMAGE_FIELDS)}; {found(record)}"
        )
    several = next((record[n] for n in CAPTION_FIELDS if isinstance(record.get(n), list)), None)
    if several is not None and not all(isinstance(caption, str) for caption in several):
        raise BadRecordError(place, "expected a list of captions to hold texts alone")
    captions = several if several is not None else [text_field(place, record, CAPTION_FIELDS)]
    name = str(record.get("id", place))
    for number, caption in enumerate(captions):
        own = name if several is None else f"{name}/{number}"
        yield Sample(id=own, messages=asked_about_images(len(images), "", caption), images=images, kind="caption")
