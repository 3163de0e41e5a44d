"""Captioned images and videos as records: rows of CSV, TSV or parquet, JSON lines, or webdataset members `jpg` and `txt`."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import VIDEO_NAMES, asked_about_images, found, media_of, text_field
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS

IMAGE_FIELDS = ("images", "image", "image_path", "filepath", "file_name", "filename")
CAPTION_FIELDS = ("caption", "captions", "text", "txt", "title")


@READERS.register("captions")
@record_reader
def read_captions(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """A sample for each caption of a record's image or video: the user shows it and says nothing.

    So does LLaVA's first stage.
    """
    media = media_of(place, record, IMAGE_FIELDS)
    images = (*media.images, *media.videos)
    if not images:
        where = f"an image in one of the fields {', '.join(IMAGE_FIELDS)}, or a video in {', '.join(VIDEO_NAMES)}"
        raise BadRecordError(place, f"expected {where}; {found(record)}")
    several = next((record[n] for n in CAPTION_FIELDS if isinstance(record.get(n), list)), None)
    if several is not None and not all(isinstance(caption, str) for caption in several):
        raise BadRecordError(place, "expected a list of captions to hold texts alone")
    captions = several if several is not None else [text_field(place, record, CAPTION_FIELDS)]
    name = str(record.get("id", place))
    for number, caption in enumerate(captions):
        own = name if several is None else f"{name}/{number}"
        messages = asked_about_images(len(media.images), "", caption, len(media.videos))
        yield Sample(id=own, messages=messages, images=images, kind="caption")
