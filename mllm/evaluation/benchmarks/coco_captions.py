"""COCO captions, validation 2014: how well a caption fits five by people, and what it makes up (CHAIR)."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, HubLayout, Item, TableRow, hub_layout
from mllm.evaluation.medium import shown
from mllm.evaluation.release import Record, coco_image

SOURCE = "https://cocodataset.org/#download (2014 Train/Val annotations)"
CAPTIONS = "annotations/captions_val2014.json"
INSTANCES = "annotations/instances_val2014.json"


class _Image(Record):
    id: int


class _Caption(Record):
    image_id: int
    caption: str


class _Captions(Record):
    images: list[_Image]
    annotations: list[_Caption]


class _Category(Record):
    id: int
    name: str


class _Instance(Record):
    image_id: int
    category_id: int


class _Instances(Record):
    categories: list[_Category]
    annotations: list[_Instance]


_COCO_NUMBER = re.compile(r"COCO_\w+?_(\d{12})")


def coco_number(record: Mapping[str, Any]) -> str:
    """Read the number of a COCO image off a record's `file_name`. Raises ValueError where that is no such name."""
    found = _COCO_NUMBER.search(record["file_name"])
    if found is None:
        raise ValueError(f"{record['file_name']!r} is no name of a COCO image")
    return str(int(found.group(1)))


def _of_hub(row: TableRow) -> Sequence[Item]:
    return [row.item(row.group, CocoCaptions.question, row["answer"])]


@BENCHMARKS.register("coco_captions")
class CocoCaptions(Benchmark):
    """The CIDEr of a sample differs from that of all 40,504 images: word weights come from the images asked."""

    folder = "coco"
    metric = "bleu_rouge_cider"
    mirrors = True
    max_new_tokens = 64
    question = "Provide a one-sentence caption for the provided image."
    card = Card(
        title="COCO captions val2014",
        questions="40,504 images, 202,654 captions",
        files=(CAPTIONS, "val2014/*.jpg"),
        source=SOURCE,
        size="0.3 GB of text, 6 GB of images",
        licence="CC BY 4.0; images by their Flickr terms",
        protocol="LLaVA-1.5's caption prompt; BLEU, ROUGE-L, CIDEr-D over Penn Treebank words",
    )
    hub: tuple[HubLayout, ...] = (
        hub_layout("lmms-lab/COCO-Caption", "data/val-*.parquet", "answer file_name", _of_hub, coco_number),
    )

    def items(self, data: Path) -> list[Item]:
        captions: dict[int, list[str]] = defaultdict(list)
        file = self.read(self.find(data, CAPTIONS, Path(CAPTIONS).name), _Captions)
        for entry in file.annotations:
            captions[entry.image_id].append(entry.caption)
        return [
            Item(
                str(image.id),
                shown(coco_image(data / self.folder, "val2014", image.id)),
                self.question,
                tuple(captions[image.id]),
                "all",
                group=str(image.id),
            )
            for image in file.images
            if captions[image.id]
        ]


@BENCHMARKS.register("coco_chair")
class CocoChair(CocoCaptions):
    """CHAIR of detailed descriptions; what is in an image is said by its instances and its captions. Less is better."""

    metric = "chair"
    max_new_tokens = 512
    default_limit: int | None = 500
    question = "Please describe this image in detail."
    card = replace(
        CocoCaptions.card,
        title="CHAIR on COCO val2014",
        questions="500 images of 40,504 unless --limit says more",
        files=(CAPTIONS, INSTANCES, "val2014/*.jpg"),
        protocol="a detailed description of up to 512 tokens; CHAIRi, CHAIRs and recall over 80 classes",
    )
    hub = ()

    def items(self, data: Path) -> list[Item]:
        instances = self.read(self.find(data, INSTANCES, Path(INSTANCES).name), _Instances)
        names = {category.id: category.name for category in instances.categories}
        objects: dict[str, set[str]] = defaultdict(set)
        for entry in instances.annotations:
            objects[str(entry.image_id)].add(names[entry.category_id])
        return [replace(item, fields={"objects": sorted(objects[item.id])}) for item in super().items(data)]
