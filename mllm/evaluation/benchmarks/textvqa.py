"""TextVQA, validation split: questions about text in photographs (Singh et al. 2019), with and without OCR tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mllm.errors import UserError
from mllm.evaluation.benchmark import (
    BENCHMARKS,
    Card,
    Columns,
    Item,
    TableBenchmark,
    TableRow,
    hub_layout,
    llava_15,
)
from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.metrics.vqa import leave_one_out_accuracy
from mllm.evaluation.metrics.vqa_text import normalize_m4c
from mllm.evaluation.release import SHORT_ANSWER, Record

OCR_FILE = "TextVQA_Rosetta_OCR_v0.2_val.json"
HUB = ("lmms-lab/textvqa", "data/validation-*.parquet", "question_id image_id question answers")


class TextVqaLine(Line):
    references: Annotated[list[str], Field(min_length=10, max_length=10)]


@METRICS.register("textvqa")
class TextVqaScore(MeanMetric):
    """Leave-one-out accuracy over exactly ten answers, both through the EvalAI processor (LLaVA's `m4c_evaluator.py`)."""

    line = TextVqaLine

    def score_line(self, line: TextVqaLine) -> float:
        return leave_one_out_accuracy(normalize_m4c(line.prediction), [normalize_m4c(r) for r in line.references])


@BENCHMARKS.register("textvqa")
class TextVqa(TableBenchmark):
    """The question alone: the model has to read."""

    folder = "textvqa"
    files = (("val", "TextVQA_0.5.1_val.json"),)
    images = "train_images/{}.jpg"
    image = "image_id"
    asks = Columns("{question_id}")
    metric = "textvqa"
    suffix = SHORT_ANSWER
    card = Card(
        title="TextVQA val",
        questions="5,000 about 3,166 images",
        files=("TextVQA_0.5.1_val.json", "train_images/*.jpg"),
        source="https://textvqa.org/dataset/",
        size="7 GB",
        licence="CC BY 4.0",
        protocol="short-answer prompt without OCR tokens; accuracy over ten answers through the EvalAI processor",
    )
    hub = (hub_layout(*HUB, asks, "{image_id}"),)


class _Tokens(Record):
    image_id: str
    ocr_tokens: list[str]


class _AllTokens(Record):
    data: list[_Tokens]


def _with_tokens(item: Item, tokens: Sequence[str]) -> Item:
    return replace(item, question=f"{item.question}\nReference OCR token: {', '.join(tokens)}")


def _of_hub(row: TableRow) -> Sequence[Item]:
    return [_with_tokens(item, row["ocr_tokens"]) for item in TextVqa.asks(row)]


@BENCHMARKS.register("textvqa_ocr")
class TextVqaOcr(TextVqa):
    """LLaVA-1.5's protocol: the tokens that an OCR system read are in the prompt, which moves scores by 20 points."""

    card = replace(
        TextVqa.card,
        title="TextVQA val with OCR tokens",
        files=(*TextVqa.card.files, OCR_FILE),
        protocol="as published for LLaVA-1.5: `Reference OCR token: …` between question and suffix",
        published=llava_15(58.2, 61.3),
    )
    hub = (hub_layout(*HUB[:2], f"{HUB[2]} ocr_tokens", _of_hub, "{image_id}"),)

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, OCR_FILE)
        tokens = {entry.image_id: entry.ocr_tokens for entry in self.read(path, _AllTokens).data}
        items = super().items(data)
        alone = next((item.group for item in items if item.group not in tokens), None)
        if alone is not None:
            raise UserError(f"{path} has no tokens of image {alone}; get the file again from {self.card.source}")
        return [_with_tokens(item, tokens[item.group]) for item in items]
