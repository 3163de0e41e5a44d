"""COCO's annotation files: captions, and instances with their boxes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.fields import asked_about_images
from mllm.data.readers.json_lines import read_document
from mllm.data.readers.refcoco import box_text
from mllm.data.readers.registry import READERS

QUESTION = "Name the objects in the image, each with its box in pixels."


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
    """A sample for each image with instances: one line `category: [x1, y1, x2, y2]` each, in the image's own pixels."""
    document = read_document(path, ("images", "annotations", "categories"))
    names = {c.get("id"): c.get("name") for c in document["categories"] if isinstance(c, dict)}
    lines: dict[Any, list[str]] = {}
    for index, instance in enumerate(document["annotations"]):
        place = f"{path}[annotations][{index}]"
        try:
            if not isinstance(instance, dict) or instance.get("category_id") not in names:
                raise BadRecordError(place, "expected `bbox` and the `category_id` of one of `categories`")
            line = f"{names[instance['category_id']]}: {box_text(place, instance.get('bbox'))}"
        except BadRecordError as error:
            on_error(error)
            continue
        lines.setdefault(instance.get("image_id"), []).append(line)
    for image in document["images"]:
        if isinstance(image, dict) and image.get("id") in lines and isinstance(image.get("file_name"), str):
            messages = asked_about_images(1, QUESTION, "\n".join(lines[image["id"]]))
            yield Sample(id=str(image["id"]), messages=messages, images=(image["file_name"],), kind="boxes")
