"""AI2D, test split: multiple-choice questions about grade-school diagrams (Kembhavi et al. 2016)."""

from pathlib import Path
from string import ascii_uppercase

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.official import LETTER_ANSWER, Card, OfficialBenchmark, Record, lettered, lettered_lines

TEST_IDS = "ai2d_test_ids.csv"


class _Question(Record):
    answerTexts: list[str]
    correctAnswer: int
    questionId: str


class _Diagram(Record):
    imageName: str
    questions: dict[str, _Question]


@BENCHMARKS.register("ai2d")
class Ai2d(OfficialBenchmark):
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
                        data / self.folder / "images" / diagram.imageName,
                        f"{question}\n{lettered_lines(options)}",
                        (ascii_uppercase[q.correctAnswer],),
                        "all",
                        group=diagram.imageName,
                        fields={"options": options},
                    )
                )
        if not items:
            raise UserError(f"{data / self.folder / 'questions'} has no question; get it from {self.card.source}")
        return items
