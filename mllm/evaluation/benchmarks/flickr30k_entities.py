"""Flickr30k Entities: find what a phrase of a caption means (Plummer et al. 2015).

Recall@1 at IoU 0.5, by both rules in use. A phrase may have several boxes: `score` counts an answer as right that meets any
of them (the any-box rule, of MDETR and after), `merged_boxes` one that meets the box around all of them (the original's
rule). A phrase without a box isn't asked. Corners are those of the files, as MDETR's evaluator takes them; the release's own
script takes one pixel off each.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.benchmarks.refcoco import THRESHOLD
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import Result, build_metric, means_by, parse_line
from mllm.evaluation.release import shared_image

SPLITS = ("val", "test")
_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)/(?P<kinds>\S+) (?P<words>[^\]]*)\]")
Corners = list[float]


@dataclass(frozen=True)
class _Image:
    """width, height: in pixels. boxes: by the chain of phrases that mean them."""

    width: int
    height: int
    boxes: dict[str, list[Corners]]


@BENCHMARKS.register("flickr30k_entities")
class Flickr30kEntities(Benchmark):
    """Every phrase with a box of the captions of val and test; answers are read as those to `refcoco`."""

    folder = "flickr30k_entities"
    metric = "iou"
    metric_settings = {"convention": "0-1"}  # noqa: RUF012 (read only)
    max_new_tokens = 64
    answers_with_places = True
    card = Card(
        title="Flickr30k Entities",
        questions="about 14,400 phrases in val and 14,500 in test",
        files=("val.txt", "test.txt", "Annotations/*.xml", "Sentences/*.txt", "flickr30k-images/*.jpg"),
        source="https://github.com/BryanPlummer/flickr30k_entities",
        size="0.1 GB of text, 4 GB of Flickr30k images",
        licence="research only; images by their Flickr terms",
        protocol="recall@1 at IoU ≥ 0.5 with any box of a phrase; also with the box around all of them",
    )

    def items(self, data: Path) -> list[Item]:
        items: list[Item] = []
        for split in SPLITS:
            for name in self.find(data, f"{split}.txt").read_text(encoding="utf-8").split():
                image = self._image(self.find(data, f"Annotations/{name}.xml"))
                sentences = self.find(data, f"Sentences/{name}.txt").read_text(encoding="utf-8").splitlines()
                for number, sentence in enumerate(sentences):
                    items += self._items(data, split, name, number, sentence, image)
        return items

    def _items(self, data: Path, split: str, name: str, number: int, sentence: str, image: _Image) -> Iterator[Item]:
        words = _PHRASE.sub(lambda found: found["words"], sentence).strip()
        picture = shared_image(data / self.folder, "flickr30k-images", f"{name}.jpg")
        for place, found in enumerate(_PHRASE.finditer(sentence)):
            boxes = image.boxes.get(found["chain"])
            if boxes:
                yield Item(
                    f"{name}-{number}-{place}",
                    shown(picture),
                    found["words"].strip(),
                    tuple(map(str, boxes)),
                    split,
                    group=name,
                    fields={
                        "references": boxes,
                        "width": image.width,
                        "height": image.height,
                        "categories": found["kinds"].split("/"),
                        "sentence": words,
                    },
                )

    def _image(self, path: Path) -> _Image:
        try:
            root = ElementTree.parse(path).getroot()
            boxes: dict[str, list[Corners]] = defaultdict(list)
            for entry in root.iter("object"):
                for box in entry.iter("bndbox"):
                    corners = [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
                    for chain in entry.findall("name"):
                        boxes[chain.text or ""].append(corners)
            width, height = (int(root.findtext(f"size/{name}", "")) for name in ("width", "height"))
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"{path} isn't as released: {error}; get it again from {self.card.source}") from None
        return _Image(width, height, dict(boxes))

    def prompt(self, item: Item) -> str:
        """The phrase with the caption that it is of, which alone says which of several things it means."""
        return (
            "Please provide the bounding box coordinate of the region that the phrase in quotes describes: "
            f"“{item.question}”, in the sentence: {item.fields['sentence']}"
        )

    def score(self, answer: str, item: Item) -> float:
        return self.score_each([answer], [item])[0]

    def scores_of(self, result: Result) -> list[float]:
        """Right or wrong: IoU of at least 0.5 with any of the boxes."""
        return [float(iou >= THRESHOLD) for iou in result.per_line]

    def score_all(self, answers: Sequence[str], items: Sequence[Item]) -> Result:
        """Also by the merged boxes, and by category; a phrase of several categories counts in each."""
        result = super().score_all(answers, items)
        right = self.scores_of(result)
        merged = build_metric(self.metric, {**self.metric_settings, "several": "merged"})
        lines = [
            parse_line(merged.line, {"prediction": answer, "references": []} | dict(item.fields), item.id)
            for answer, item in zip(answers, items, strict=True)
        ]
        scores = {"merged_boxes": merged.score(lines).scores["score"]}
        pairs = [(kind, own) for item, own in zip(items, right, strict=True) for kind in item.fields["categories"]]
        scores |= means_by("category", [kind for kind, _ in pairs], [own for _, own in pairs])
        return Result(result.scores | scores, result.per_line, result.notes)
