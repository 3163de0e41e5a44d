"""Visual Spatial Reasoning: is what a sentence says about the places of two things in a photo true? (Liu et al. 2023).

Checked against the authors' `eval_compute_acc_by_rel.py`, and the reader on their files; no model was run on the photos here.
The authors' models have two outputs and no words; the question is the one of Prismatic's evaluation, which compares the
probabilities of "True" and "False", as `--choice-by likelihood` does here.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.medium import Medium, shown
from mllm.evaluation.metric import METRICS, Line, MeanMetric, Result
from mllm.evaluation.metrics.closed import TrueOrFalse
from mllm.evaluation.release import Record, read_lines_as, shared_image

QUESTION = 'Based on the image, is this statement "True" or "False"? {}\nRespond with "True" or "False" directly.'
_WORD = re.compile(r"\b(?:(true|yes)|false|no)\b", re.IGNORECASE)


class VsrLine(Line):
    """`relation` is what the sentence says of the two, such as "left of"."""

    references: TrueOrFalse
    relation: str | None = None


def read_truth(answer: str) -> bool | None:
    """Whether the first of the words true, yes, false and no says that it is so; None where there is none of them."""
    found = _WORD.search(answer)
    return None if found is None else found[1] is not None


@METRICS.register("vsr")
class VsrScore(MeanMetric):
    """Accuracy, also by relation. An answer that says neither true nor false is wrong."""

    line = VsrLine
    by = ("relation",)

    def score_line(self, line: VsrLine) -> float:
        said = read_truth(line.prediction)
        return float(said is not None and said == (line.references[0] == "true"))

    def score(self, lines: Sequence[VsrLine]) -> Result:
        result = super().score(lines)
        said = [read_truth(line.prediction) for line in lines]
        unread = said.count(None)
        notes = (f"{unread} answer(s) say neither true nor false, and are wrong",) if unread else ()
        return Result(result.scores | {"true_ratio": said.count(True) / len(said)}, result.per_line, notes)


class _Sentence(Record):
    image: str
    image_link: str
    caption: str
    label: bool
    relation: str


@BENCHMARKS.register("vsr")
class Vsr(Benchmark):
    """The test split of the random division."""

    folder = "vsr"
    metric = "vsr"
    mirrors = True
    split = "random"
    card = Card(
        title="VSR, random test",
        questions="2,195 about 1,874 photos, 61 relations",
        files=("splits/random/test.jsonl", "images/*.jpg"),
        source="https://github.com/cambridgeltl/visual-spatial-reasoning (data/)",
        size="1 MB of text, 1 GB of COCO images (those that are used)",
        licence="Apache-2.0; images by their Flickr terms",
        protocol="Prismatic's question about a true statement; the first of true, yes, false and no; accuracy",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, f"splits/{self.split}/test.jsonl", f"data/splits/{self.split}/test.jsonl")
        return [
            Item(
                str(number),
                self._image(data / self.folder, sentence),
                QUESTION.format(sentence.caption),
                ("true" if sentence.label else "false",),
                sentence.relation,
                sentence.image,
                {"relation": sentence.relation, "options": ["True", "False"]},
            )
            for number, sentence in enumerate(read_lines_as(_Sentence, path, self.card.source))
        ]

    def _image(self, root: Path, sentence: _Sentence) -> tuple[Medium, ...]:
        """In `images/`, where the authors' script puts it, or in COCO's folder that its link names."""
        own = root / "images" / sentence.image
        of_coco = shared_image(root, sentence.image_link.split("/")[-2], sentence.image)
        return shown(of_coco if of_coco.is_file() and not own.is_file() else own)


@BENCHMARKS.register("vsr_zeroshot")
class VsrZeroShot(Vsr):
    """The test split whose things aren't in the training split of its division; the one that others mostly report."""

    split = "zeroshot"
    card = replace(
        Vsr.card,
        title="VSR, zero-shot test",
        questions="1,222 about 715 photos, 53 relations",
        files=("splits/zeroshot/test.jsonl", *Vsr.card.files[1:]),
    )
