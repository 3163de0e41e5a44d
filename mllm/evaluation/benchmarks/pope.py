"""POPE: is there a … in the image? Half of the objects asked for aren't (Li et al. 2023)."""

from pathlib import Path

from pydantic import ValidationError

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record, first_problem, llava_15

KINDS = ("random", "popular", "adversarial")


class _Question(Record):
    question_id: int
    image: str
    text: str
    label: str


@BENCHMARKS.register("pope")
class Pope(OfficialBenchmark):
    folder = "pope"
    metric = "pope"
    suffix = SHORT_ANSWER
    card = Card(
        title="POPE on COCO",
        questions="3 × 3,000 about 500 images",
        files=(*(f"coco_pope_{kind}.json" for kind in KINDS), "val2014/*.jpg"),
        source="https://github.com/AoiDragon/POPE (output/coco)",
        size="2 MB of text, 6 GB of COCO val2014 images (500 of them used)",
        licence="MIT; images by their Flickr terms",
        protocol="LLaVA-1.5's short-answer prompt; F1 of yes, averaged over the three files",
        published=llava_15(85.9, 85.9),
    )

    def items(self, data: Path) -> list[Item]:
        """Ids repeat from file to file, so the file's kind is part of them."""
        items = []
        for kind in KINDS:
            path = self.find(data, f"coco_pope_{kind}.json")
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
                if line.strip():
                    items.append(self._item(data, kind, f"{path}:{number}", line))
        return items

    def _item(self, data: Path, kind: str, where: str, line: str) -> Item:
        try:
            question = _Question.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"{where}: {first_problem(error)}; get it again from {self.card.source}") from None
        own = data / self.folder / "val2014" / question.image
        shared = data / "coco" / "val2014" / question.image
        return Item(
            f"{kind}-{question.question_id}",
            shared if shared.is_file() and not own.is_file() else own,
            question.text,
            (question.label,),
            kind,
            group=question.image,
            fields={"group": kind},
        )
