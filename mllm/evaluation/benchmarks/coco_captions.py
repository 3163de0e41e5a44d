"""COCO captions, validation 2014: how well a caption fits five by people, and what it makes up (CHAIR)."""

from collections import defaultdict
from pathlib import Path

from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import Card, OfficialBenchmark, Record, coco_image

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


@BENCHMARKS.register("coco_captions")
class CocoCaptions(OfficialBenchmark):
    """The CIDEr of a sample differs from that of all 40,504 images: word weights come from the images asked."""

    folder = "coco"
    metric = "bleu_rouge_cider"
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

    def items(self, data: Path) -> list[Item]:
        captions: dict[int, list[str]] = defaultdict(list)
        file = self.read(self.find(data, CAPTIONS, Path(CAPTIONS).name), _Captions)
        for entry in file.annotations:
            captions[entry.image_id].append(entry.caption)
        return [
            Item(
                str(image.id),
                coco_image(data / self.folder, "val2014", image.id),
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
    card = Card(
        title="CHAIR on COCO val2014",
        questions="500 images of 40,504 unless --limit says more",
        files=(CAPTIONS, INSTANCES, "val2014/*.jpg"),
        source=SOURCE,
        size=CocoCaptions.card.size,
        licence=CocoCaptions.card.licence,
        protocol="a detailed description of up to 512 tokens; CHAIRi, CHAIRs and recall over 80 classes",
    )

    def items(self, data: Path) -> list[Item]:
        instances = self.read(self.find(data, INSTANCES, Path(INSTANCES).name), _Instances)
        names = {category.id: category.name for category in instances.categories}
        objects: dict[str, set[str]] = defaultdict(set)
        for entry in instances.annotations:
            objects[str(entry.image_id)].add(names[entry.category_id])
        return [
            Item(
                item.id,
                item.image,
                item.question,
                item.references,
                item.type,
                item.group,
                fields={"objects": sorted(objects[item.id])},
            )
            for item in super().items(data)
        ]
