"""MP-DocVQA, validation split: questions about documents of up to 20 pages, all shown (Tito et al. 2022).

Checked against the authors' `metrics.py` and lmms-eval 75571cf; the full release was not run here. The release says on which
page an answer is; a model that answers in words names none, so that the official page accuracy is not part of this.
"""

from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item, TableRow, hub_layout
from mllm.evaluation.medium import Medium
from mllm.evaluation.metric import METRICS, Line, MeanMetric, Result, mean
from mllm.evaluation.metrics.anls import THRESHOLD, edit_distance
from mllm.evaluation.release import SHORT_ANSWER, Record, listed


class MpDocVqaLine(Line):
    """`pages` says how many there are, in words."""

    pages: str | None = None


def _similarity(said: str, reference: str) -> float:
    own = reference.lower().strip()
    return 1 - edit_distance(own, said) / max(len(own), len(said))


@METRICS.register("mp_docvqa")
class MpDocVqaScore(MeanMetric):
    """ANLS as the authors' script has it: inner spaces count, an empty answer or `none` is 0; and exact `accuracy`."""

    line = MpDocVqaLine
    by = ("pages",)

    def score_line(self, line: MpDocVqaLine) -> float:
        said = line.prediction.lower().strip()
        if said in ("", "none"):
            return 0.0
        best = max(_similarity(said, reference) for reference in line.references)
        return best if best >= THRESHOLD else 0.0

    def score(self, lines: Sequence[MpDocVqaLine]) -> Result:
        result = super().score(lines)
        return Result(result.scores | {"accuracy": mean([_is_exact(line) for line in lines])}, result.per_line)


def _is_exact(line: MpDocVqaLine) -> float:
    said = line.prediction.lower().strip()
    return float(said != "none" and said in [reference.lower().strip() for reference in line.references])


class _Question(Record):
    questionId: int
    question: str
    page_ids: list[str]
    doc_id: str
    answers: list[str]


class _Release(Record):
    data: list[_Question]


def _pages(count: int) -> str:
    return next(name for most, name in ((1, "1 page"), (5, "2–5 pages"), (20, "6–20 pages")) if count <= most)


def _of_hub(row: TableRow) -> Sequence[Item]:
    answers = [str(answer) for answer in listed(row["answers"])]
    pages = _pages(len(row.media))
    return [row.item(str(row["questionId"]), row["question"], answers, pages, pages=pages)]


@BENCHMARKS.register("mp_docvqa")
class MpDocVqa(Benchmark):
    folder = "mp_docvqa"
    metric = "mp_docvqa"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="MP-DocVQA val",
        questions="5,187 about 927 documents",
        files=("val.json", "images/{page_id}.jpg"),
        source="https://rrc.cvc.uab.es/?ch=17 (task 4, free registration)",
        size="16 GB with the training pages",
        licence="terms of the RRC portal, research",
        protocol="every page in order, then lmms-eval's short-answer prompt; the authors' ANLS; no page accuracy",
    )
    hub = (
        hub_layout(
            "lmms-lab/MP-DocVQA",
            "data/val-*.parquet",
            "questionId question doc_id answers",
            _of_hub,
            "{doc_id}",
            "image_1",
        ),
    )

    def items(self, data: Path) -> list[Item]:
        questions = self.read(self.find(data, "val.json"), _Release).data
        return [self._item(data / self.folder / "images", question) for question in questions]

    def _item(self, images: Path, question: _Question) -> Item:
        media = tuple(Medium(str(images / f"{page}.jpg")) for page in question.page_ids)
        pages = _pages(len(media))
        return Item(
            str(question.questionId),
            media,
            question.question,
            tuple(question.answers),
            pages,
            question.doc_id,
            {"pages": pages},
        )
