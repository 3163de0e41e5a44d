"""VQAv2, validation split: open questions about COCO images, ten answers each (Goyal et al. 2017)."""

from collections.abc import Sequence
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item, TableRow, hub_layout, llava_15
from mllm.evaluation.medium import shown
from mllm.evaluation.release import SHORT_ANSWER, Record, coco_image


class _Question(Record):
    question_id: int
    image_id: int
    question: str


class _Questions(Record):
    questions: list[_Question]


class _Answer(Record):
    answer: str


class _Annotation(Record):
    question_id: int
    question_type: str
    answer_type: str
    answers: list[_Answer]


class _Annotations(Record):
    annotations: list[_Annotation]


def _of_hub(row: TableRow) -> Sequence[Item]:
    kinds = {"question_type": row["question_type"], "answer_type": row["answer_type"]}
    answers = [answer["answer"] for answer in row["answers"]]
    return [row.item(str(row["question_id"]), row["question"], answers, row["answer_type"], **kinds)]


@BENCHMARKS.register("vqav2")
class VqaV2(Benchmark):
    """test-dev is scored by a server alone, so this is the validation split."""

    folder = "vqav2"
    metric = "vqa"
    suffix = SHORT_ANSWER
    card = Card(
        title="VQAv2 val",
        questions="214,354 about 40,504 images",
        files=("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014/*.jpg"),
        source="https://visualqa.org/download.html",
        size="0.1 GB of text, 6 GB of COCO val2014 images",
        licence="annotations CC BY 4.0; images by their Flickr terms",
        protocol="LLaVA-1.5's short-answer prompt; VQA accuracy, both sides normalized",
        published=llava_15(78.5, 80.0, "on test-dev; ours is val"),
    )
    hub = (
        hub_layout(
            "lmms-lab/VQAv2",
            "data/validation-*.parquet",
            "question_id image_id question answers question_type answer_type",
            _of_hub,
            "{image_id}",
        ),
    )

    def items(self, data: Path) -> list[Item]:
        questions_path = self.find(data, "v2_OpenEnded_mscoco_val2014_questions.json")
        annotations_path = self.find(data, "v2_mscoco_val2014_annotations.json")
        annotations = {a.question_id: a for a in self.read(annotations_path, _Annotations).annotations}
        items = []
        for question in self.read(questions_path, _Questions).questions:
            annotation = annotations.get(question.question_id)
            if annotation is None:
                raise UserError(f"{annotations_path} has no answers to question {question.question_id}")
            image = coco_image(data / self.folder, "val2014", question.image_id)
            items.append(
                Item(
                    str(question.question_id),
                    shown(image),
                    question.question,
                    tuple(answer.answer for answer in annotation.answers),
                    annotation.answer_type,
                    group=str(question.image_id),
                    fields={"question_type": annotation.question_type, "answer_type": annotation.answer_type},
                )
            )
        return items
