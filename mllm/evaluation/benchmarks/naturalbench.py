"""NaturalBench: two photos and two questions, each with another answer to each photo (Li et al. 2024).

Checked against the authors' `naturalbench_vqa.py`, quirks included: letters are found without regard to case, so that the
article "a" is A. The full release was not run here.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import AliasChoices, Field

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Card, Item, TableRow, hub_layout
from mllm.evaluation.hub import ParquetRelease
from mllm.evaluation.metric import METRICS, Id, Line, Metric, Result, mean
from mllm.evaluation.metrics.closed import spelled_as

YES_NO, CHOICE = "yes_no", "multiple_choice"
SUFFIXES = {
    YES_NO: "Please answer Yes or No.",
    CHOICE: "Please output the letter corresponding to the correct option.",
}
ANSWERS = {YES_NO: ("Yes", "No"), CHOICE: ("A", "B")}
_WORDS = {kind: tuple(re.compile(rf"\b{word}\b", re.I) for word in words) for kind, words in ANSWERS.items()}


class NaturalBenchLine(Line):
    """`question` and `image` say which of the two of sample `group` this answers; `question_type` is how it is read.

    The first question is meant to be answered yes (A) to the first image alone, the second to the second alone.
    """

    group: Id = Field(validation_alias=AliasChoices("group", "index"))
    question: Literal[0, 1]
    image: Literal[0, 1]
    question_type: Literal["yes_no", "multiple_choice"]


def read_answer(answer: str, question_type: str) -> bool | None:
    """Whether yes comes before no, or A before B; None where neither is there."""
    first, second = (word.search(answer) for word in _WORDS[question_type])
    if first is None or second is None:
        return None if first is second else first is not None
    return first.start() < second.start()


def _rates(hits: dict[tuple[int, int], bool]) -> dict[str, float]:
    """hits: by (question, image), of one sample."""
    by_question = [hits[n, 0] and hits[n, 1] for n in range(2)]
    by_image = [hits[0, n] and hits[1, n] for n in range(2)]
    return {
        "G_Acc": float(all(by_question)),
        "Q_Acc": mean([float(hit) for hit in by_question]),
        "I_Acc": mean([float(hit) for hit in by_image]),
        "Acc": mean([float(hit) for hit in hits.values()]),
    }


@METRICS.register("naturalbench")
class NaturalBenchScore(Metric):
    """The official four; `score` is G_Acc, the share of samples with all four answers right. A line scores as its sample."""

    line = NaturalBenchLine

    def score(self, lines: Sequence[NaturalBenchLine]) -> Result:
        said = [read_answer(line.prediction, line.question_type) for line in lines]
        samples: dict[str, dict[tuple[int, int], bool]] = {}
        for line, own in zip(lines, said, strict=True):
            place = (line.question, line.image)
            if place in samples.setdefault(line.group, {}):
                raise UserError(
                    f"NaturalBench sample {line.group}: question {place[0]} of image {place[1]} comes twice"
                )
            samples[line.group][place] = own == (line.question == line.image)
        odd = next((name for name, hits in samples.items() if len(hits) != 4), None)
        if odd is not None:
            raise UserError(f"NaturalBench sample {odd} has {len(samples[odd])} answer(s); expected four")
        rates = {name: _rates(hits) for name, hits in samples.items()}
        scores: dict[str, Any] = {
            n: mean([own[n] for own in rates.values()]) for n in ("G_Acc", "Q_Acc", "I_Acc", "Acc")
        }
        unread = said.count(None)
        notes = (f"{unread} answer(s) name neither answer, and are wrong",) if unread else ()
        return Result({"score": scores["G_Acc"]} | scores, [rates[line.group]["G_Acc"] for line in lines], notes)


def _of_hub(row: TableRow) -> Sequence[Item]:
    index, kind = str(row["Index"]), row["Question_Type"]
    items = []
    for question in range(2):
        for image in range(2):
            right = spelled_as(ANSWERS[kind], row[f"Image_{image}_Question_{question}"])
            fields = {"group": index, "question": question, "image": image, "question_type": kind}
            text = row[f"Question_{question}"] + SUFFIXES[kind]
            item = row.item(f"{index}-q{question}-i{image}", text, [right], kind, options=list(ANSWERS[kind]), **fields)
            items.append(replace(item, media=(row.media[image],)))
    return items


@BENCHMARKS.register("naturalbench")
class NaturalBench(ParquetRelease):
    folder = "naturalbench"
    metric = "naturalbench"
    needs_whole_groups = True
    card = Card(
        title="NaturalBench",
        questions="1,900 samples of two photos and two questions",
        files=("data/train-*.parquet",),
        source="https://huggingface.co/datasets/BaiqiL/NaturalBench",
        size="1.3 GB",
        licence="Apache-2.0; images by their sources' terms",
        protocol="the authors' suffixes, without a space before them as there; their reading; all four answers right",
    )
    hub = (
        hub_layout(
            "BaiqiL/NaturalBench",
            "data/train-*.parquet",
            "Index Question_0 Image_0_Question_0 Image_1_Question_0 Question_1 Image_0_Question_1 Image_1_Question_1 "
            "Question_Type",
            _of_hub,
            "{Index}",
            "Image_0",
        ),
    )

    def score(self, answer: str, item: Item) -> float:
        """Whether this answer alone is right; the official number needs all four of a sample."""
        return float(read_answer(answer, item.fields["question_type"]) == (item.references[0] in ("Yes", "A")))
