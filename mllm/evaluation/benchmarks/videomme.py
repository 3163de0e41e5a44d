"""Video-MME: multiple choice about 900 videos of eleven seconds to an hour, without and with subtitles (Fu et al. 2024).

Checked against the official `eval_your_results.py` and README, lmms-eval 75571cf and VLMEvalKit e8e78f0; the full release was
not run here. The official setting with subtitles gives those of the frames that a model sees; here all of them are given,
because the frames are the model's own choice.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from mllm.data.readers.errors import raise_error
from mllm.data.readers.parquet import read_parquet
from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.letters import lmms_letter
from mllm.evaluation.medium import Medium
from mllm.evaluation.metric import METRICS, Line, mean, means_by
from mllm.evaluation.metrics.closed import FirstLetter
from mllm.evaluation.release import Record, first_problem, lettered
from mllm.evaluation.rules import Judge, RuledMetric

LETTERS = "ABCD"
SUFFIXES = ("mp4", "MP4", "mkv")
INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\n"
)
ENDING = "\nThe best answer is:"
_NAMED = ("duration", "domain", "sub_category", "task_type")
# Two of the official prefixes lack a comma between them and became one; so did two more.
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
_VLMEVALKIT_PREFIXES = (*_PREFIXES, "Answer:", "Option:")
_TAG = re.compile(r"<[^>]*>")
_TIME = re.compile(r"^[0-9:,]+ --> [0-9:,]+")


class VideoMmeLine(Line):
    """`references` is the letter; the others are the release's own columns."""

    references: FirstLetter
    duration: Literal["short", "medium", "long"] | None = None
    domain: str | None = None
    sub_category: str | None = None
    task_type: str | None = None


def first_letter(answer: str, prefixes: Sequence[str] = _PREFIXES) -> str | None:
    """The first capital A to D of an answer without the prefixes, also inside a word; None where there is none."""
    for prefix in prefixes:
        answer = answer.strip().replace(prefix, "")
    found = re.search("[ABCD]", answer)
    return found[0] if found else None


def _official(line: VideoMmeLine) -> float | None:
    """An answer without a letter is left out of the mean."""
    letter = first_letter(line.prediction)
    return None if letter is None else float(letter in line.references)


def _lmms_eval(line: VideoMmeLine) -> float:
    return float(lmms_letter(line.prediction, LETTERS) in line.references)


def _vlmevalkit(line: VideoMmeLine) -> float:
    return float(first_letter(line.prediction, _VLMEVALKIT_PREFIXES) in line.references)


@METRICS.register("videomme")
class VideoMmeScore(RuledMetric):
    """Accuracy, by duration, domain, sub-category and type of task. `official` leaves out answers without a letter."""

    line = VideoMmeLine
    judges: ClassVar[Mapping[str, Judge]] = {
        "official": _official,
        "lmms_eval": _lmms_eval,
        "vlmevalkit": _vlmevalkit,
    }

    def summarize(self, lines: Sequence[VideoMmeLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        scores: dict[str, Any] = {"score": mean(values)}
        for name in _NAMED:
            scores |= means_by(name, [getattr(line, name) for line in lines], values)
        return scores

    def notes(self, lines: Sequence[VideoMmeLine]) -> tuple[str, ...]:
        count = sum(first_letter(line.prediction) is None for line in lines)
        return (f"{count} answer(s) have no letter, and the official score leaves them out",) if count else ()


def subtitles_of(path: Path) -> str:
    """The words of an `.srt` file, a line each, without times, numbers, markup and lines that repeat the one before."""
    lines: list[str] = []
    for block in path.read_text(encoding="utf-8", errors="replace").replace("\r", "").split("\n\n"):
        rows = block.strip().split("\n")
        start = next((n + 1 for n, row in enumerate(rows) if _TIME.match(row)), len(rows))
        text = _TAG.sub("", " ".join(rows[start:])).strip()
        if text and text not in lines[-1:]:
            lines.append(text)
    return "\n".join(lines)


class _Question(Record):
    videoID: str
    duration: Literal["short", "medium", "long"]
    domain: str
    sub_category: str
    task_type: str
    question_id: str
    question: str
    options: list[str]
    answer: str


@BENCHMARKS.register("videomme")
class VideoMme(Benchmark):
    """Without subtitles."""

    folder = "videomme"
    metric = "videomme"
    card = Card(
        title="Video-MME",
        questions="2,700 about 900 videos: 300 each short, medium and long",
        files=("videomme/test-*.parquet", "data/{videoID}.mp4, .MP4 or .mkv (also in video/)"),
        source="https://huggingface.co/datasets/lmms-lab/Video-MME (unpack its archives)",
        size="100 GB",
        licence="research only",
        protocol="the official prompt without subtitles; the official reading of the letter",
    )

    def items(self, data: Path) -> list[Item]:
        root = data / self.folder
        files = sorted((root / "videomme").glob("test-*.parquet")) or sorted(root.glob("test-*.parquet"))
        if not files:
            raise UserError(f"{root}/videomme/test-*.parquet does not exist; get it from {self.card.source}")
        return [self._item(root, place, record) for file in files for place, record in self._records(file)]

    def _records(self, file: Path) -> list[tuple[str, dict[str, Any]]]:
        try:
            return list(read_parquet(file, raise_error))
        except UserError as error:
            raise UserError(f"{error}; get it again from {self.card.source}") from None

    def _item(self, root: Path, place: str, record: Mapping[str, Any]) -> Item:
        try:
            question = _Question.model_validate(record)
        except ValidationError as error:
            raise UserError(f"{place}: {first_problem(error)}; get it again from {self.card.source}") from None
        folder = root / "video" if (root / "video").is_dir() else root / "data"
        paths = [folder / f"{question.videoID}.{suffix}" for suffix in SUFFIXES]
        video = next((path for path in paths if path.is_file()), paths[0])
        texts = [re.sub(r"^[A-Z]\.\s*", "", option) for option in question.options]
        words = "\n".join((question.question, *question.options))
        fields = {name: getattr(question, name) for name in _NAMED} | {"options": lettered(texts)}
        return Item(
            question.question_id,
            (Medium(str(video), is_video=True),),
            self.opening(root, question.videoID) + INSTRUCTION + words,
            (question.answer,),
            question.duration,
            question.videoID,
            fields,
        )

    def opening(self, root: Path, video: str) -> str:
        """What stands before the instruction: nothing."""
        return ""

    def prompt(self, item: Item) -> str:
        return item.question + ENDING


@BENCHMARKS.register("videomme_subtitles")
class VideoMmeSubtitles(VideoMme):
    """With all subtitles of a video that has some; the others are asked as without."""

    card = Card(
        title="Video-MME with subtitles",
        questions=VideoMme.card.questions,
        files=(*VideoMme.card.files, "subtitle/{videoID}.srt"),
        source=VideoMme.card.source,
        size=VideoMme.card.size,
        licence=VideoMme.card.licence,
        protocol="the official prompt with all subtitles, not those of the frames alone; the official reading",
    )

    def items(self, data: Path) -> list[Item]:
        folder = data / self.folder / "subtitle"
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; get it from {self.card.source}")
        return super().items(data)

    def opening(self, root: Path, video: str) -> str:
        """The subtitles of the release's file, if there is one."""
        path = root / "subtitle" / f"{video}.srt"
        return f"This video's subtitles are listed below:\n{subtitles_of(path)}\n" if path.is_file() else ""
