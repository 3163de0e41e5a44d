"""Karpathy's splits of COCO and Flickr30k: one JSON file of images, each with its captions and its part."""

from collections.abc import Iterator
from pathlib import Path

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.fields import asked_about_images
from mllm.data.readers.json_lines import read_document
from mllm.data.readers.registry import READERS


@READERS.register("karpathy_test")
def read_karpathy_test(path: Path | str, on_error: OnError = raise_error) -> Iterator[Sample]:
    """A sample for each caption of the part `test` (COCO 5k, Flickr30k 1k): the user shows the image and says nothing.

    Images are named as `filepath`/`filename`, or `filename` alone where there is no folder.
    """
    for index, image in enumerate(read_document(path, ("images",))["images"]):
        place = f"{path}[images][{index}]"
        if isinstance(image, dict) and image.get("split") != "test":
            continue
        sentences = image.get("sentences") if isinstance(image, dict) else None
        texts = [s.get("raw") if isinstance(s, dict) else None for s in sentences or [None]]
        if not all(isinstance(text, str) for text in texts) or not isinstance(image.get("filename"), str):
            on_error(BadRecordError(place, "expected `filename` and `sentences` with `raw` text"))
            continue
        file = str(Path(image.get("filepath", "")) / image["filename"])
        for number, text in enumerate(texts):
            yield Sample(
                id=f"{index}/{number}", messages=asked_about_images(1, "", str(text)), images=(file,), kind="caption"
            )
