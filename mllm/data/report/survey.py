"""Counts over the samples of a recipe, in one pass and bounded memory."""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import Sample, media_kinds
from mllm.data.answer_balance import question_form, short_answer
from mllm.data.pair_counts import PairCounts
from mllm.data.readers import READERS
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.samples import with_resolved_images
from mllm.data.scripts import script_of
from mllm.errors import BadSampleError, UserError
from mllm.media.decode import read_image_size

SHOWN = 24
SIZED_IMAGES = 5000
CAPTIONED_IMAGES = 20000
KEPT_ANSWERS = 50000
KEPT_FORMS = 5000


@dataclass
class Survey:
    """Counts; `words` of an answer, `sides` of images as (height, width), `shown` a fair draw of samples.

    `overlap` holds, for images that have a caption (a sample of kind "caption"), the share of an instruction's answer words
    (longer than three letters) that the captions have. `funnels` are by source file, from a synthesis report beside it.
    `forms` has the short answers by the form of their question. `pairs`: what preference pairs are like whose chosen answers
    are counted with the rest; `bad_pairs`: those that a run would refuse, by the kind of what is wrong, which are counted
    nowhere else.
    """

    samples: int = 0
    without_image: int = 0
    unreadable: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    yes_no: dict[str, Counter[str]] = field(default_factory=dict)
    forms: dict[str, Counter[str]] = field(default_factory=dict)
    sides: list[tuple[int, int]] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    shown: list[Sample] = field(default_factory=list)
    funnels: dict[str, dict[str, int]] = field(default_factory=dict)
    pairs: PairCounts = field(default_factory=PairCounts)
    bad_pairs: Counter[str] = field(default_factory=Counter)


class Surveyor:
    """Adds samples to a survey. Images are looked at by their headers, and only so many of them."""

    def __init__(self) -> None:
        self.survey = Survey()
        self._rng = random.Random(0)
        self._captions: dict[str, set[str]] = {}
        self._sized: set[str] = set()

    def add_source(self, source: SourceSettings) -> None:
        files = source.files()
        for file in files:
            for sample in READERS.get(source.reader)(Path(file), lambda error: self._note_unreadable()):
                if source.kinds is not None and sample.kind not in source.kinds:
                    continue
                if source.origins is not None and sample.source not in source.origins:
                    continue
                try:
                    self.add(with_resolved_images(sample, Path(source.image_root), files), Path(file).name)
                except UserError:
                    self._note_unreadable()
            report = Path(file).with_name("synth_report.json")
            if report.is_file():
                self.survey.funnels[str(report)] = _funnel(report)

    def _note_unreadable(self) -> None:
        self.survey.unreadable += 1

    def add(self, sample: Sample, file: str) -> None:
        survey = self.survey
        if isinstance(sample, PreferencePair):
            try:
                sample.check()
            except BadSampleError as error:
                survey.bad_pairs[error.kind] += 1
                return
            survey.pairs.add(sample)
            self._add_turns(sample.sides[0], file)
        else:
            self._add_turns(sample, file)
        # Reservoir sampling (Vitter 1985, algorithm R).
        if len(survey.shown) < SHOWN:
            survey.shown.append(sample)
        elif (place := self._rng.randrange(survey.samples)) < SHOWN:
            survey.shown[place] = sample

    def _add_turns(self, sample: Sample, file: str) -> None:
        survey = self.survey
        survey.samples += 1
        survey.without_image += not sample.images
        survey.sources[sample.source or file] += 1
        survey.kinds[sample.kind or "(none)"] += 1
        asked = [message.text for message in sample.messages if message.role == "user"]
        answers = [message.text for message in sample.messages if message.role == "assistant"]
        survey.scripts[script_of(" ".join(answers))] += 1
        survey.turns[len(answers)] += 1
        for question, answer in zip(asked, answers, strict=False):
            self._add_turn(question, answer)
        self._relate(sample, answers)
        for kind, image in zip(media_kinds(sample.messages), sample.images, strict=False):
            if kind == "image":  # a video's size is known only once its packets are read
                self._measure(image)

    def _add_turn(self, question: str, answer: str) -> None:
        survey = self.survey
        words = answer.split()
        survey.words[len(words)] += 1
        short = short_answer(answer)
        if short is not None and (short in survey.answers or len(survey.answers) < KEPT_ANSWERS):
            survey.answers[short] += 1
            form = question_form(question)
            if form in survey.forms or len(survey.forms) < KEPT_FORMS:
                survey.forms.setdefault(form, Counter())[short] += 1
        first = words[0].lower().strip(".,!:;") if words else ""
        if first in ("yes", "no"):
            text = question.strip().split("\n")[0]
            if text in survey.yes_no or len(survey.yes_no) < KEPT_ANSWERS:
                survey.yes_no.setdefault(text, Counter())[first] += 1

    def _relate(self, sample: Sample, answers: list[str]) -> None:
        words = {word for answer in answers for word in re.findall(r"\w{4,}", answer.lower())}
        if sample.kind == "caption":
            if sample.group in self._captions or len(self._captions) < CAPTIONED_IMAGES:
                self._captions.setdefault(sample.group, set()).update(words)
        elif words and sample.group in self._captions and len(self.survey.overlap) < KEPT_ANSWERS:
            self.survey.overlap.append(len(words & self._captions[sample.group]) / len(words))

    def _measure(self, image: str) -> None:
        if image in self._sized or len(self._sized) >= SIZED_IMAGES:
            return
        self._sized.add(image)
        try:
            self.survey.sides.append(read_image_size(image))
        except UserError:
            self.survey.unreadable += 1


def survey_recipe(recipe: RecipeSettings) -> Survey:
    """Read every sample once. What isn't readable is counted. Raises UserError for streams and missing files."""
    surveyor, done = Surveyor(), set()
    # Captions first: instructions about the same images are compared with them.
    for source in sorted(recipe.sources, key=lambda source: source.reader not in ("captions", "coco_captions")):
        key = (source.path, source.reader, source.image_root, source.kinds, source.origins)
        if source.stream:
            raise UserError(f"source {source.path} is a stream, which can't be surveyed; remove stream: true")
        if key not in done:
            done.add(key)
            surveyor.add_source(source)
    return surveyor.survey


def _funnel(path: Path) -> dict[str, int]:
    """What each stage of a synthesis run refused, and what was left."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        stages = report["funnel"] if "funnel" in report else {
            f"{source}: {name}": count for source, refused in report["dropped"].items() for name, count in refused.items()
        }  # fmt: skip
        left = report["samples"] if "samples" in report else sum(report["written"].values())
        return {**{str(name): int(count) for name, count in stages.items() if count}, "written": int(left)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a report of a synthesis run ({error!r})") from None
