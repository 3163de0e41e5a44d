"""COCO's annotation files: captions, and instances with their boxes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.conversation.boxes import Region
from mllm.conversation.schema import BoxesPart, Sample
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.fields import asked_about_images
from mllm.data.readers.json_lines import read_document
from mllm.data.readers.refcoco import answered_with, coco_box
from mllm.data.readers.registry import READERS

QUESTION = "Name the objects in the image, each with its box."


@READERS.register("coco_captions")
def read_coco_captions(path: Path | str, on_error: OnError = raise_error) -> Iterator[Sample]:
    """A sample for each caption: the user shows the image and says nothing. Ids are those of the annotations."""
    document = read_document(path, ("images", "annotations"))
    files = {image.get("id"): image.get("file_name") for image in document["images"] if isinstance(image, dict)}
    for index, caption in enumerate(document["annotations"]):
        place = f"{path}[annotations][{index}]"
        file = files.get(caption.get("image_id")) if isinstance(caption, dict) else None
        if not isinstance(file, str) or not isinstance(caption.get("caption"), str):
            on_error(BadRecordError(place, "expected `caption` (text) and the `image_id` of one of `images`"))
            continue
        messages = asked_about_images(1, "", caption["caption"])
        yield Sample(id=str(caption.get("id", place)), messages=messages, images=(file,), kind="caption")


@READERS.register("coco_boxes")
def read_coco_boxes(path: Path | str, on_error: OnError = raise_error) -> Iterator[Sample]:
    """A sample for each image with instances: their categories and boxes, as data."""
    document = read_document(path, ("images", "annotations", "categories"))
    names = {c.get("id"): c.get("name") for c in document["categories"] if isinstance(c, dict)}
    regions: dict[Any, list[Region]] = {}
    for index, instance in enumerate(document["annotations"]):
        place = f"{path}[annotations][{index}]"
        try:
            if not isinstance(instance, dict) or instance.get("category_id") not in names:
                raise BadRecordError(place, "expected `bbox` and the `category_id` of one of `categories`")
            box = coco_box(place, instance.get("bbox"))
            region = Region(label=str(names[instance["category_id"]]), box=box)
        except BadRecordError as error:
            on_error(error)
            continue
        regions.setdefault(instance.get("image_id"), []).append(region)
    for image in document["images"]:
        if isinstance(image, dict) and image.get("id") in regions and isinstance(image.get("file_name"), str):
            boxes = BoxesPart(boxes=tuple(regions[image["id"]]), unit="pixels")
            messages = answered_with([boxes], asked_about_images(1, QUESTION, ""))
            yield Sample(id=str(image["id"]), messages=messages, images=(image["file_name"],), kind="boxes")
