"""AI2D, test split: multiple-choice questions about grade-school diagrams (Kembhavi et al. 2016)."""

import re
import string
from collections.abc import Sequence
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item, TableRow, hub_layout
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Line, MeanMetric
from mllm.evaluation.metrics.closed import Letter
from mllm.evaluation.release import LETTER_ANSWER, Record, lettered, lettered_lines

TEST_IDS = "ai2d_test_ids.csv"
_LETTER = re.compile(r"^\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


class Ai2dLine(Line):
    """`references` is the letter of the right option."""

    references: Letter


@METRICS.register("ai2d")
class Ai2dScore(MeanMetric):
    """Accuracy as lmms-eval has it: "B. the leaf" counts as "B"; then equal but for case, punctuation and outer space."""

    line = Ai2dLine

    def score_line(self, line: Ai2dLine) -> float:
        found = _LETTER.match(line.prediction)
        answer = found.group(1) if found else line.prediction.strip()
        return float(_plain(answer) in map(_plain, line.references))


class _Question(Record):
    answerTexts: list[str]
    correctAnswer: int
    questionId: str


class _Diagram(Record):
    imageName: str
    questions: dict[str, _Question]


def _of_hub(row: TableRow) -> Sequence[Item]:
    options = lettered(row["options"])
    question = f"{row['question']}\n{lettered_lines(options)}"
    return [row.item(str(row.number), question, [list(options)[int(row["answer"])]], options=options)]


@BENCHMARKS.register("ai2d")
class Ai2d(Benchmark):
    folder = "ai2d"
    metric = "ai2d"
    suffix = LETTER_ANSWER
    card = Card(
        title="AI2D test",
        questions="3,088",
        files=("questions/*.json", "images/*.png", f"{TEST_IDS} (numbers of the test diagrams)"),
        source="https://prior.allenai.org/projects/diagram-understanding",
        size="0.5 GB",
        licence="license.txt in the archive, research",
        protocol="lettered options and LLaVA's multiple-choice suffix; the letter as lmms-eval reads it",
    )
    hub = (hub_layout("lmms-lab/ai2d", "data/test-*.parquet", "question options answer", _of_hub),)

    def items(self, data: Path) -> list[Item]:
        ids = self.find(data, TEST_IDS).read_text(encoding="utf-8").split()
        items = []
        for number in ids:
            path = data / self.folder / "questions" / f"{number}.png.json"
            if not path.is_file():
                continue  # "Some images do not have a question" (README of the release)
            diagram = self.read(path, _Diagram)
            for question, q in diagram.questions.items():
                if not 0 <= q.correctAnswer < len(q.answerTexts):
                    raise UserError(f"{path}: question {q.questionId} has no answer {q.correctAnswer}")
                options = lettered(q.answerTexts)
                items.append(
                    Item(
                        q.questionId,
                        shown(data / self.folder / "images" / diagram.imageName),
                        f"{question}\n{lettered_lines(options)}",
                        (string.ascii_uppercase[q.correctAnswer],),
                        "all",
                        group=diagram.imageName,
                        fields={"options": options},
                    )
                )
        if not items:
            raise UserError(f"{data / self.folder / 'questions'} has no question; get it from {self.card.source}")
        return items
