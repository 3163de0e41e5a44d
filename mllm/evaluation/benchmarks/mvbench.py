"""MVBench: 20 tasks of temporal understanding, multiple choice about short videos (Li et al. 2023).

Checked against the authors' `check_ans`, lmms-eval 75571cf and VLMEvalKit e8e78f0; the full release was not run here. Videos
lie as in the release's main branch, where a question says from when to when its clip is shown, or as in its branch `video`,
whose files are cut. The frames at 3 a second that the main branch has for `episodic_reasoning` are not read; its cut files
are. The authors' prompt puts "Best option:(" into the model's mouth, which isn't done here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.letters import vlmevalkit_letter
from mllm.evaluation.medium import Medium
from mllm.evaluation.metric import METRICS, mean, means_by
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.metrics.vqa_text import strip_punctuation
from mllm.evaluation.release import Record, lettered
from mllm.evaluation.rules import Judge, RuledMetric
from mllm.media.span import span_reference

# task: folders of its videos, the main branch's first, then that of files that are cut already
FOLDERS = {
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "action_count": ("perception/videos",),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "action_prediction": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_sequence": ("star/Charades_v1_480", "star/Charades_segment"),
    "character_order": ("perception/videos",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment",),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "moving_attribute": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": ("star/Charades_v1_480", "star/Charades_segment"),
    "object_shuffle": ("perception/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "unexpected_action": ("FunQA_test/test",),
}
CUT = ("sta/sta_video_segment", "star/Charades_segment", "tvqa/video_fps3_hq_segment")
_LISTED = re.compile(r"^([A-E])\.\s*(.+)$", re.IGNORECASE)
_ALONE = re.compile(r"\b([A-E])\b", re.IGNORECASE)


class MvBenchLine(ChoiceLine):
    """`task` is one of the 20."""

    task: str | None = None


def _official(line: MvBenchLine) -> float:
    """The first word is in "(a)", or that is in it; so an empty answer is right, and "a" or ")" alone."""
    first, wanted = line.prediction.lower().split(" ")[0], f"({line.references[0].lower()})"
    return float(first.replace(".", "") in wanted or wanted in first)


def _lmms_eval(line: MvBenchLine) -> float | None:
    """`B. text`, else the first of A to E that is a word of its own, the article too; an empty answer is left out."""
    if not line.prediction:
        return None
    found = _LISTED.match(line.prediction.strip())
    found = found or _ALONE.search(strip_punctuation(line.prediction).strip("'").strip('"()').strip())
    return float(found is not None and found[1].upper() in line.references)


def _vlmevalkit(line: MvBenchLine) -> float:
    """The authors' rule, else a letter or text as elsewhere; without the judge."""
    stripped = line.model_copy(update={"prediction": line.prediction.strip()})
    return _official(stripped) or float(vlmevalkit_letter(line.prediction, line.options) in line.references)


@METRICS.register("mvbench")
class MvBenchScore(RuledMetric):
    """Accuracy over all questions, and by task."""

    line = MvBenchLine
    judges: ClassVar[Mapping[str, Judge]] = {
        "official": _official,
        "lmms_eval": _lmms_eval,
        "vlmevalkit": _vlmevalkit,
    }

    def summarize(self, lines: Sequence[MvBenchLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        return {"score": mean(values)} | means_by("task", [line.task for line in lines], values)


class _Question(Record):
    video: str
    question: str
    candidates: list[str]
    answer: str
    start: float | None = None
    end: float | None = None


class _Task(RootModel[list[_Question]]):
    pass


@BENCHMARKS.register("mvbench")
class MvBench(Benchmark):
    folder = "mvbench"
    metric = "mvbench"
    suffix = "Only give the best option.\n"
    card = Card(
        title="MVBench",
        questions="4,000: 200 in each of 20 tasks",
        files=("json/{task}.json", "video/… as in the release, unpacked"),
        source="https://huggingface.co/datasets/OpenGVLab/MVBench",
        size="17 GB",
        licence="MIT; videos by their sources' terms",
        protocol="question and options as the authors write them, lmms-eval's ending; the authors' reading",
    )

    def items(self, data: Path) -> list[Item]:
        items: list[Item] = []
        for task in FOLDERS:
            questions = self.read(self.find(data, f"json/{task}.json"), _Task).root
            items += [self._item(data / self.folder, task, number, own) for number, own in enumerate(questions)]
        return items

    def _item(self, root: Path, task: str, number: int, question: _Question) -> Item:
        options = lettered(question.candidates)
        letter = next((letter for letter, text in options.items() if text == question.answer), None)
        if letter is None:
            path = root / "json" / f"{task}.json"
            raise UserError(f"{path}: question {number} offers no {question.answer!r}; get it from {self.card.source}")
        lines = [f"Question:{question.question}", "Option:", *(f"({own}) {text}" for own, text in options.items()), ""]
        return Item(
            f"{task}-{number}",
            (_clip(root / "video", task, question),),
            "\n".join(lines),
            (letter,),
            task,
            f"{task}/{question.video}",
            {"options": options, "task": task},
        )


def _clip(root: Path, task: str, question: _Question) -> Medium:
    """The part of the video that the question is about; its place in the main branch where it is in none."""
    places = [(folder, root / folder / question.video) for folder in FOLDERS[task]]
    folder, path = next((own for own in places if own[1].exists()), places[0])
    if question.start is None or question.end is None or folder in CUT:
        return Medium(str(path), is_video=True)
    return Medium(span_reference(str(path), question.start, question.end), is_video=True)
