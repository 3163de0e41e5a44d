"""Referring expressions with boxes (RefCOCO and its kin), as records: the original's pickle files are not read.

The answers are boxes as data, which are written in the model's box format.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mllm.conversation.boxes import Region
from mllm.conversation.schema import BoxesPart, Message, Part, Sample
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import asked_about_images, found, image_paths
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: "  # LLaVA-1.5's
IMAGE_FIELDS = ("image", "images", "file_name", "image_path")


@READERS.register("refcoco")
@record_reader
def read_refcoco(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """A sample for each expression, asked for as LLaVA-1.5's training data and the benchmarks do. The answer is its box.

    Expressions stand as `sentences` (texts, or objects with `raw` or `sent`) or `sentence`; `bbox` is COCO's
    [x, y, width, height].
    """
    images = image_paths(place, record, IMAGE_FIELDS)
    given = record.get("sentences", [record.get("sentence")])
    if not images or not isinstance(given, list):
        raise BadRecordError(place, f"expected an image, `bbox` and `sentences`; {found(record)}")
    sentences = [s.get("raw", s.get("sent")) if isinstance(s, dict) else s for s in given]
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise BadRecordError(place, "a sentence is text, or an object with `raw` or `sent`")
    name = str(record.get("ref_id", record.get("id", place)))
    boxes = BoxesPart(boxes=(Region(box=coco_box(place, record.get("bbox"))),), unit="pixels")
    for number, sentence in enumerate(sentences):
        messages = answered_with([boxes], asked_about_images(len(images), f"{QUESTION}{sentence}", ""))
        yield Sample(id=f"{name}/{number}", messages=messages, images=images, kind="refer")


def answered_with(parts: Sequence[Part], messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` with parts in place of the words of the last one."""
    return (*messages[:-1], messages[-1].model_copy(update={"content": tuple(parts)}))


def coco_box(place: str, box: Any) -> tuple[float, float, float, float]:
    """COCO's [x, y, width, height] as corners x1, y1, x2, y2, both in pixels."""
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)):
        raise BadRecordError(place, "expected `bbox` to be [x, y, width, height]")
    x, y, width, height = box
    return x, y, x + width, y + height
