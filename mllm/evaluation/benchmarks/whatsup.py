"""What'sUp: where one thing lies to another, in photos of the same things in four places, and in COCO and Visual Genome.

Kamath et al. 2023. Checked against `evaluate_scores` of the authors' `aro_datasets.py`; the release was not run here. There
images are compared with captions, and the first caption is always the right one. A generative model is asked for a letter, so
captions are put in another order: among those of a file and a place, each letter is right as often as any other.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.letters import vlmevalkit_letter
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Metric, Result, mean, means_by
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.release import LETTER_ANSWER, Record, lettered, lettered_lines, shared_image

QUESTION = "Which caption best describes the image?\n{}"
CONTROLLED = {"controlled_a": "controlled_images_dataset.json", "controlled_b": "controlled_clevr_dataset.json"}
PHOTOS = {
    "coco_one": "coco_qa_one_obj.json",
    "coco_two": "coco_qa_two_obj.json",
    "vg_one": "vg_qa_one_obj.json",
    "vg_two": "vg_qa_two_obj.json",
}
OPPOSITES = (("left", "right"), ("on", "under"), ("in-front", "behind"))
PLACES = 4  # of a set
_RELATIONS = ("left of", "right of", "above", "below", "front of", "behind", "top")


class WhatsUpLine(ChoiceLine):
    """`subset` is the file; `set` the two things that lie in four places, and `preposition` which of them this is."""

    subset: str = "all"
    set: Id | None = None
    preposition: str | None = None


def _by_set(lines: Sequence[WhatsUpLine], hits: Sequence[float]) -> dict[str, float]:
    """Shares of pairs of opposites and of sets that are right throughout, by the authors' denominators; {} without sets."""
    sets: dict[str, dict[str, float]] = defaultdict(dict)
    for line, hit in zip(lines, hits, strict=True):
        if line.set is not None and line.preposition is not None:
            sets[line.set][line.preposition] = hit
    if not sets:
        return {}
    pairs = sum(bool(own.get(a) and own.get(b)) for own in sets.values() for a, b in OPPOSITES)
    whole = sum(sum(own.values()) == PLACES for own in sets.values())
    return {"pair": pairs / (len(lines) / 2), "set": whole / (len(lines) / PLACES)}


@METRICS.register("whatsup")
class WhatsUpScore(Metric):
    """Accuracy of each file over single questions, pairs of opposites and sets; `score` is the first, the mean over files."""

    line = WhatsUpLine

    def score(self, lines: Sequence[WhatsUpLine]) -> Result:
        hits = [float(vlmevalkit_letter(line.prediction, line.options) in line.references) for line in lines]
        by_subset: dict[str, dict[str, float]] = {}
        for subset in dict.fromkeys(line.subset for line in lines):
            own = [(line, hit) for line, hit in zip(lines, hits, strict=True) if line.subset == subset]
            own_lines, own_hits = [line for line, _ in own], [hit for _, hit in own]
            by_subset[subset] = {"individual": mean(own_hits)} | _by_set(own_lines, own_hits)
        scores: dict[str, Any] = {}
        for kind in ("individual", "pair", "set"):
            found = [own[kind] for own in by_subset.values() if kind in own]
            scores |= {kind: mean(found)} if found else {}
        places = [f"{line.subset} {line.preposition}" if line.preposition else None for line in lines]
        by_place = means_by("preposition", places, hits)
        return Result({"score": scores["individual"]} | scores | {"by_subset": by_subset} | by_place, hits)


class _Controlled(Record):
    image_path: str
    caption_options: list[str]


class _ControlledFile(RootModel[list[_Controlled]]):
    pass


class _PhotoFile(RootModel[list[tuple[int | str, str, str]]]):
    pass


class _InTurn:
    """Puts the right caption, which comes first, at each place in turn among the questions of a file and a preposition."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()
        self._order: dict[tuple[str, str], int] = {}

    def options(self, captions: Sequence[str], subset: str, preposition: str) -> tuple[dict[str, str], str]:
        """Options by letter, and the letter of the right one."""
        key = (subset, preposition)
        # Prepositions begin at places of their own, so that a set's four images don't share one letter.
        place = (self._order.setdefault(key, len(self._order)) + self._seen[key]) % len(captions)
        self._seen[key] += 1
        texts = list(captions[1:])
        texts.insert(place, captions[0])
        options = lettered(texts)
        return options, list(options)[place]


def _item(
    name: str, image: Path, group: str, fields: Mapping[str, str], options: Mapping[str, str], letter: str
) -> Item:
    question = QUESTION.format(lettered_lines(options))
    return Item(name, shown(image), question, (letter,), fields["subset"], group, {"options": options} | dict(fields))


@BENCHMARKS.register("whatsup")
class WhatsUp(Benchmark):
    """The controlled photos: the same two things in four places."""

    folder = "whatsup"
    metric = "whatsup"
    mirrors = True
    suffix = LETTER_ANSWER
    needs_whole_groups = True
    card = Card(
        title="What'sUp, controlled photos",
        questions="some 820 photos, four of each two things",
        files=(*CONTROLLED.values(), "controlled_images/*.jpeg", "controlled_clevr/*.jpeg"),
        source="https://github.com/amitakamath/whatsup_vlms (a Google Drive folder)",
        size="some GB of photos",
        licence="see the repository",
        protocol="captions as lettered options, the right one at each letter in turn; individual, pair and set accuracy",
    )

    def items(self, data: Path) -> list[Item]:
        in_turn, found = _InTurn(), []
        for subset, name in CONTROLLED.items():
            path = self.find(data, name)
            for number, record in enumerate(self.read(path, _ControlledFile).root):
                image = Path(record.image_path)
                words = image.stem.split("_")
                if len(words) < 3 or len(record.caption_options) != PLACES:
                    raise UserError(
                        f"{path}: question {number} isn't as released; get the file again from {self.card.source}"
                    )
                things, place = f"{subset}/{words[0]}/{words[-1]}", words[1]
                options, letter = in_turn.options(record.caption_options, subset, place)
                fields = {"subset": subset, "set": things, "preposition": place}
                file = data / self.folder / image.parent.name / image.name
                found.append(_item(f"{subset}-{number}", file, things, fields, options, letter))
        return found


@BENCHMARKS.register("whatsup_photos")
class WhatsUpPhotos(Benchmark):
    """Photos of COCO and Visual Genome, each with a right and a wrong caption."""

    folder = "whatsup"
    metric = "whatsup"
    mirrors = True
    suffix = LETTER_ANSWER
    card = Card(
        title="What'sUp, photos of COCO and Visual Genome",
        questions="two captions to a photo, in four files",
        files=(*PHOTOS.values(), "val2017/*.jpg", "vg_images/*.jpg"),
        source=WhatsUp.card.source,
        size="0.8 GB of COCO's val2017, and some photos of Visual Genome",
        licence=WhatsUp.card.licence,
        protocol="captions as lettered options, the right one at each letter in turn; accuracy, the mean over files",
    )

    def items(self, data: Path) -> list[Item]:
        in_turn, found = _InTurn(), []
        for subset, name in PHOTOS.items():
            for number, (image, *captions) in enumerate(self.read(self.find(data, name), _PhotoFile).root):
                place = _place_of(captions[0], subset)
                options, letter = in_turn.options(captions, subset, place)
                fields = {"subset": subset, "preposition": place}
                file = self._image(data / self.folder, subset, str(image))
                found.append(
                    _item(f"{subset}-{number}", file, f"{subset.split('_')[0]}/{image}", fields, options, letter)
                )
        return found

    def _image(self, root: Path, subset: str, image: str) -> Path:
        if subset.startswith("coco"):
            return shared_image(root, "val2017", f"{image.zfill(12)}.jpg")
        return root / "vg_images" / f"{image}.jpg"


def _place_of(caption: str, subset: str) -> str:
    """What a caption says of the place: its last word where it is about one thing, else the relation in it."""
    if subset.endswith("one"):
        return caption.split()[-1]
    return next((relation for relation in _RELATIONS if relation in caption), caption).removesuffix(" of")
