"""CHAIR (Rohrbach et al. 2018): which objects of a caption aren't in the image? As Maxlinn/CHAIR-metric-standalone."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from mllm.evaluation.metric import METRICS, Line, Metric, Result
from mllm.evaluation.metrics.coco_objects import OBJECTS

_DOUBLES = """
motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,fire hydrant,stop sign,
parking meter,suit case,sports ball,baseball bat,baseball glove,tennis racket,wine glass,hot dog,cell phone,
mobile phone,teddy bear,hair drier,potted plant,laptop computer,home plate,train track
""".replace("\n", "").split(",")
_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]

DOUBLES = {words: words for words in _DOUBLES}
# A baby bird is a bird and no baby; the last three undo what splitting and the singular would do.
DOUBLES |= {f"{young} {animal}": animal for young in ("baby", "adult") for animal in _ANIMALS}
DOUBLES |= {"passenger jet": "jet", "passenger train": "train"}
DOUBLES |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}

_IRREGULAR = {"men": "man", "people": "person", "children": "child", "geese": "goose", "oxen": "ox"}
_UNCHANGED = ("scissors", "doggies", "collies")
# (ending, what stands in its place), the first that fits; as pattern.en, whose "bus" → "bu" is part of the metric.
_ENDINGS = [
    (re.compile(ending), singular)
    for ending, singular in (
        (r"(shoe)s$", r"\1"),
        (r"(o)es$", r"\1"),
        (r"(bus)es$", r"\1"),
        (r"([ml])ice$", r"\1ouse"),
        (r"(x|ch|ss|sh)es$", r"\1"),
        (r"([^aeiouy]|qu)ies$", r"\1y"),
        (r"([aeo]l)ves$", r"\1f"),
        (r"([nlw]i)ves$", r"\1fe"),
        (r"([lr])ves$", r"\1f"),
        (r"([aeo])ves$", r"\1ve"),
        (r"s$", ""),
    )
]

_CLITIC = r"n't\b|'(?:s|m|d|ll|re|ve)\b"
WORD = re.compile(rf"{_CLITIC}|(?:(?!{_CLITIC}|--|\.(?:\s|$)|\.\.)[^\s,;:@#$%&?!\"()\[\]{{}}<>`])+|\S")


def _singular(word: str) -> str:
    if word.endswith(_UNCHANGED):
        return word
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    for ending, singular in _ENDINGS:
        if ending.search(word):
            return ending.sub(singular, word)
    return word


def singular_words(text: str) -> list[str]:
    """The words of a text, small and in the singular, marks among them."""
    return [_singular(word.strip("'")) for word in WORD.findall(text.lower())]


def objects_of(caption: str) -> list[str]:
    """The COCO classes that a caption names, in order, repeats included."""
    singles = singular_words(caption)
    words: list[str] = []
    place = 0
    while place < len(singles):
        pair = " ".join(singles[place : place + 2])
        words.append(DOUBLES.get(pair, singles[place]))
        place += 2 if pair in DOUBLES else 1
    if "toilet" in words:
        words = [word for word in words if word != "seat"]
    return [OBJECTS[word] for word in words if word in OBJECTS]


class ChairLine(Line):
    """`references` are captions of the image, `objects` the COCO categories of its instances; both say what is there."""

    references: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = (
        Field(default_factory=list)
    )
    objects: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.references and not self.objects:
            raise ValueError("references: field required, or objects, to tell what the image holds")
        unknown = [name for name in self.objects if name not in OBJECTS]
        if unknown:
            raise ValueError(f"objects: {unknown[0]!r} is no COCO category")
        return self

    @property
    def truth(self) -> set[str]:
        """The classes that are in the image."""
        return {OBJECTS[name] for name in self.objects} | {o for text in self.references for o in objects_of(text)}


@METRICS.register("chair")
class ChairScore(Metric):
    """`chair_s`: captions with an object that isn't there; `chair_i`: objects named that aren't; `recall` of those that are.

    `score` is `chair_i`, and less is better. A line scores its own `chair_i`, and is right if it invents nothing.
    """

    line = ChairLine
    lower_is_better = True
    right_at = 0.0

    def score(self, lines: Sequence[ChairLine]) -> Result:
        named = invented = found = there = captions = 0
        per_line = []
        for line in lines:
            truth, mentioned = line.truth, objects_of(line.prediction)
            wrong = sum(name not in truth for name in mentioned)
            named, invented, captions = named + len(mentioned), invented + wrong, captions + bool(wrong)
            found, there = found + len(truth.intersection(mentioned)), there + len(truth)
            per_line.append(wrong / len(mentioned) if mentioned else 0.0)
        chair_i = invented / named if named else 0.0
        scores = {"score": chair_i, "chair_s": captions / len(lines), "chair_i": chair_i}
        return Result(scores | {"recall": found / there if there else 0.0, "objects_named": named}, per_line)
