"""Objects that a description makes up, for a user's own images: labels or boxes say what is there, a table its words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, Field

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Line, Metric, Result
from mllm.evaluation.metrics.chair import singular_words
from mllm.evaluation.metrics.coco_objects import OBJECTS

NAMED = 10


class Present(BaseModel):
    """An object that is there; `box` is where, which nothing here depends on."""

    label: str
    box: list[float] | None = None


def _presents(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    return [{"label": own} if isinstance(own, str) else own for own in values]


class PresentLine(Line):
    """`references` are the objects in the image: labels, or `{"label": …, "box": [x1, y1, x2, y2]}`."""

    references: Annotated[list[Present], BeforeValidator(_presents), Field(min_length=1)]  # type: ignore[assignment]


@METRICS.register("object_hallucination")
class ObjectHallucinationScore(Metric):
    """`object_rate`: of the objects that are named, those that aren't there, which is `score`; less is better.

    `description_rate`: descriptions with one; `recall`: of those that are there; `made_up`: the commonest inventions.
    `synonyms` names a YAML or JSON file of an object's words, `{object: [word, …]}`; COCO's 80 classes by default. A label
    that is in no table is its own word. Repeats count once a description. A line scores its own share, and is right at 0.
    """

    line = PresentLine
    lower_is_better = True
    right_at = 0.0
    synonyms: str = ""

    def score(self, lines: Sequence[PresentLine]) -> Result:
        words = self._words | {
            _key(own.label): own.label
            for line in lines
            for own in line.references
            if _key(own.label) not in self._words
        }
        named = [_named(line.prediction, words) for line in lines]
        truths = [{words[_key(own.label)] for own in line.references} for line in lines]
        wrong = [[name for name in own if name not in truth] for own, truth in zip(named, truths, strict=True)]
        found = sum(len(truth.intersection(own)) for own, truth in zip(named, truths, strict=True))
        total, there = sum(map(len, named)), sum(map(len, truths))
        rate = sum(map(len, wrong)) / total if total else 0.0
        scores: dict[str, Any] = {
            "score": rate,
            "object_rate": rate,
            "description_rate": sum(map(bool, wrong)) / len(lines),
            "recall": found / there,
            "objects_named": total,
            "made_up": dict(Counter(name for own in wrong for name in own).most_common(NAMED)),
        }
        per_line = [len(own) / len(all_of) if all_of else 0.0 for own, all_of in zip(wrong, named, strict=True)]
        return Result(scores, per_line)

    @cached_property
    def _words(self) -> dict[str, str]:
        """A word or some words, in the singular → the object. Raises UserError for a table that is none."""
        if not self.synonyms:
            return {_key(word): name for word, name in OBJECTS.items()}
        path = Path(self.synonyms)
        if not path.is_file():
            raise UserError(f"{path} does not exist; synonyms is a YAML or JSON file, {{object: [word, …]}}")
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(table, Mapping) or not all(isinstance(own, list) for own in table.values()):
            raise UserError(f"{path} is no table of synonyms; expected {{object: [word, …]}}")
        return {_key(str(word)): str(name) for name, own in table.items() for word in (name, *own)}


def _key(words: str) -> str:
    return " ".join(singular_words(words))


def _named(text: str, words: Mapping[str, str]) -> list[str]:
    """The objects that a text names, each once, in order; of words that begin alike the longest count."""
    longest = max(len(word.split(" ")) for word in words)
    singles = singular_words(text)
    found: dict[str, None] = {}
    place = 0
    while place < len(singles):
        spans = (" ".join(singles[place : place + size]) for size in range(longest, 0, -1))
        word = next((span for span in spans if span in words), None)
        if word is not None:
            found[words[word]] = None
        place += len(word.split(" ")) if word else 1
    return list(found)
