"""TextVQA, validation split: questions about text in photographs (Singh et al. 2019), with and without OCR tokens."""

from collections.abc import Sequence
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark, Record, llava_15

SOURCE = "https://textvqa.org/dataset/"
OCR_FILE = "TextVQA_Rosetta_OCR_v0.2_val.json"


class _Question(Record):
    question_id: int
    image_id: str
    question: str
    answers: list[str]


class _Questions(Record):
    data: list[_Question]


class _Tokens(Record):
    image_id: str
    ocr_tokens: list[str]


class _AllTokens(Record):
    data: list[_Tokens]


@BENCHMARKS.register("textvqa")
class TextVqa(OfficialBenchmark):
    """The question alone: the model has to read."""

    folder = "textvqa"
    metric = "textvqa"
    suffix = SHORT_ANSWER
    card = Card(
        title="TextVQA val",
        questions="5,000 about 3,166 images",
        files=("TextVQA_0.5.1_val.json", "train_images/*.jpg"),
        source=SOURCE,
        size="7 GB",
        licence="CC BY 4.0",
        protocol="short-answer prompt without OCR tokens; accuracy over ten answers through the EvalAI processor",
    )

    def items(self, data: Path) -> list[Item]:
        questions = self.read(self.find(data, "TextVQA_0.5.1_val.json"), _Questions).data
        return [
            Item(
                str(q.question_id),
                data / self.folder / "train_images" / f"{q.image_id}.jpg",
                q.question,
                tuple(q.answers),
                "all",
                group=q.image_id,
            )
            for q in questions
        ]


def with_tokens(question: str, tokens: Sequence[str]) -> str:
    return f"{question}\nReference OCR token: {', '.join(tokens)}"


@BENCHMARKS.register("textvqa_ocr")
class TextVqaOcr(TextVqa):
    """LLaVA-1.5's protocol: the tokens that an OCR system read are in the prompt, which moves scores by 20 points."""

    card = Card(
        title="TextVQA val with OCR tokens",
        questions=TextVqa.card.questions,
        files=(*TextVqa.card.files, OCR_FILE),
        source=SOURCE,
        size=TextVqa.card.size,
        licence=TextVqa.card.licence,
        protocol="as published for LLaVA-1.5: `Reference OCR token: …` between question and suffix",
        published=llava_15(58.2, 61.3),
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, OCR_FILE)
        tokens = {entry.image_id: entry.ocr_tokens for entry in self.read(path, _AllTokens).data}
        items = []
        for item in super().items(data):
            if item.group not in tokens:
                raise UserError(f"{path} has no tokens of image {item.group}; get the file again from {SOURCE}")
            question = with_tokens(item.question, tokens[item.group])
            items.append(Item(item.id, item.image, question, item.references, item.type, item.group))
        return items
