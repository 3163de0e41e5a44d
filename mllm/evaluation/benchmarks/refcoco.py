"""RefCOCO, RefCOCO+ and RefCOCOg: find the box that an expression means (Yu et al. 2016; Mao et al. 2016)."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from mllm.data.readers.refcoco import QUESTION
from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, HubLayout, Item, TableRow
from mllm.evaluation.benchmarks.coco_captions import coco_number
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import Result
from mllm.evaluation.release import Record, coco_image, first_problem
from mllm.media.decode import read_image_size

THRESHOLD = 0.5


class _Sentence(Record):
    sent: str
    sent_id: int


class _Reference(Record):
    ann_id: int
    image_id: int
    split: str
    sentences: list[_Sentence]


class _Annotation(Record):
    id: int
    bbox: tuple[float, float, float, float]


class _Image(Record):
    id: int
    width: int
    height: int


class _Instances(Record):
    images: list[_Image]
    annotations: list[_Annotation]


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and numbers; a pickle that asks for anything else is refused, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(file: IO[bytes], path: Path) -> Any:
    """The plain data of a Python 2 or 3 pickle. Raises UserError for any other pickle and for a broken one."""
    try:
        return _PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"{path} is not the plain pickle of the official release: {error}") from None


class RefCoco(Benchmark):
    """Every expression of every split but train.

    Answers are read in the model's own box format. Of a model whose format isn't known, such as an endpoint's, they are read
    in any form, and as shares of the image (0–1).
    """

    metric = "iou"
    metric_settings = {"convention": "0-1"}  # noqa: RUF012 (read only)
    answers_with_places = True
    max_new_tokens = 64
    refs: ClassVar[str]

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, self.refs)
        with open(path, "rb") as file:
            plain = read_plain_pickle(file, path)
        try:
            references = TypeAdapter(list[_Reference]).validate_python(plain)
        except ValidationError as error:
            raise UserError(f"{path}: {first_problem(error)}; get it again from {self.card.source}") from None
        instances_path = self.find(data, "instances.json")
        instances = self.read(instances_path, _Instances)
        boxes = {annotation.id: annotation.bbox for annotation in instances.annotations}
        images = {image.id: image for image in instances.images}
        items = []
        for reference in references:
            if reference.split == "train":
                continue
            if reference.ann_id not in boxes or reference.image_id not in images:
                raise UserError(f"{instances_path} lacks annotation {reference.ann_id} or its image; get it again")
            items += self._items(data, reference, boxes[reference.ann_id], images[reference.image_id])
        return items

    def _items(self, data: Path, reference: _Reference, bbox: tuple[float, ...], image: _Image) -> list[Item]:
        x, y, width, height = bbox
        corners = [x, y, x + width, y + height]
        return [
            Item(
                str(sentence.sent_id),
                shown(coco_image(data / self.folder, "train2014", image.id)),
                sentence.sent,
                (str(corners),),
                reference.split,
                group=str(image.id),
                fields={"references": [corners], "width": image.width, "height": image.height},
            )
            for sentence in reference.sentences
        ]

    def prompt(self, item: Item) -> str:
        return QUESTION + item.question

    def score(self, answer: str, item: Item) -> float:
        return self.score_each([answer], [item])[0]

    def scores_of(self, result: Result) -> list[float]:
        """Right or wrong: IoU of at least 0.5."""
        return [float(iou >= THRESHOLD) for iou in result.per_line]


def _of_hub(row: TableRow) -> Sequence[Item]:
    if not row.media:
        raise UserError(f"row {row.number} of {row.split} has no image")
    height, width = read_image_size(row.media[0].source)
    x, y, box_width, box_height = (float(value) for value in row["bbox"])
    corners = [x, y, x + box_width, y + box_height]
    fields = {"references": [corners], "width": width, "height": height}
    return [
        row.item(f"{row.number}-{place}", expression, (str(corners),), row.split, **fields)
        for place, expression in enumerate(row["answer"])
    ]


def _layouts(repository: str, *splits: str) -> tuple[HubLayout, ...]:
    """The splits that are those of the papers.

    val of RefCOCO and of RefCOCOg there holds Google's split beside UNC's and UMD's (8,811 = 3,811 + 5,000 regions;
    7,573 = 2,573 + 5,000).
    """
    files = {split: f"data/{split}-*.parquet" for split in splits}
    return (HubLayout(repository, files, ("answer", "bbox", "file_name"), _of_hub, coco_number),)


def _card(title: str, refs: str, expressions: str) -> Card:
    return Card(
        title=title,
        questions=expressions,
        files=(refs, "instances.json", "train2014/*.jpg"),
        source="https://github.com/lichengunc/refer",
        size="0.1 GB of text, 13 GB of COCO train2014 images",
        licence="Apache-2.0; images by their Flickr terms",
        protocol="LLaVA-1.5's box prompt; IoU ≥ 0.5, val and tests apart",
    )


@BENCHMARKS.register("refcoco")
class RefCocoPlain(RefCoco):
    folder = "refcoco"
    refs = "refs(unc).p"
    card = _card("RefCOCO (UNC)", refs, "10,834 val, 5,657 testA, 5,095 testB")
    hub = _layouts("lmms-lab/RefCOCO", "testA", "testB")


@BENCHMARKS.register("refcoco+")
class RefCocoPlus(RefCoco):
    folder = "refcoco+"
    refs = "refs(unc).p"
    card = _card("RefCOCO+ (UNC)", refs, "10,758 val, 5,726 testA, 4,889 testB")
    hub = _layouts("lmms-lab/RefCOCOplus", "val", "testA", "testB")


@BENCHMARKS.register("refcocog")
class RefCocoG(RefCoco):
    folder = "refcocog"
    refs = "refs(umd).p"
    card = _card("RefCOCOg (UMD)", refs, "4,896 val, 9,602 test")
    hub = _layouts("lmms-lab/RefCOCOg", "test")
