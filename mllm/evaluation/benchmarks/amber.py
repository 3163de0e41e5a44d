"""AMBER: what descriptions make up, and yes/no questions about what exists, how it is and what touches (Wang et al. 2023).

Checked against the authors' `inference.py` with its tagger and its word vectors replaced by ours: every number is equal on
random answers to their 15,220 questions. Near-synonyms (spaCy's en_core_web_lg, similarity above 0.8) come from a table that
`benchmarks/amber_similar_words.py` writes; without it words are compared as they are, and a line says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, RootModel, model_validator
from typing_extensions import Self

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Line, Metric, Result
from mllm.evaluation.metrics.amber_nouns import nouns_of
from mllm.evaluation.metrics.amber_words import ASSOCIATIONS, SAFE_WORDS
from mllm.evaluation.metrics.closed import spelled_as
from mllm.evaluation.release import SHORT_ANSWER, Record

GENERATIVE = "generative"
EXISTENCE = "discriminative-hallucination"
ATTRIBUTES = {
    "state": "discriminative-attribute-state",
    "number": "discriminative-attribute-number",
    "action": "discriminative-attribute-action",
}
# What the official denominators start at, which of attributes are three sums, and what is added to that of F1.
START, F1_START = 0.001, 0.0001
STARTS = {"existence": (START, 0.001), "attribute": (3 * START, F1_START)}
SIMILAR = "similar_words.json"


class AmberLine(Line):
    """`category` is the question's type. Of a description `references` are things that are there, `hallu` likely inventions.

    `similar` has words of those two and what goes with them that are near-synonyms of a word of AMBER's list, by that word;
    None where near-synonyms weren't looked up.
    """

    category: str = Field(validation_alias=AliasChoices("category", "type"))
    hallu: list[str] = Field(default_factory=list)
    similar: dict[str, list[str]] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.category == GENERATIVE:
            unknown = next((word for word in (*self.references, *self.hallu) if word not in ASSOCIATIONS), None)
            if unknown is not None:
                raise ValueError(f"references: {unknown!r} is not on AMBER's list")
            return self
        if len(self.references) != 1:
            raise ValueError("references: expected yes or no")
        return self.model_copy(update={"references": [spelled_as(("yes", "no"), self.references[0])]})


@dataclass(frozen=True)
class Judged:
    """A description: how many words it kept and how many of them are made up, and which things it named."""

    kept: int
    made_up: int
    there: tuple[bool, ...]
    likely: tuple[bool, ...]


class _Things:
    """Things with the words that count as them, each word standing for the first thing that it goes with."""

    def __init__(self, things: Sequence[str]) -> None:
        owners = [(word, place) for place, thing in enumerate(things) for word in ASSOCIATIONS[thing]]
        self._owners = [*owners, *((thing, place) for place, thing in enumerate(things))]
        self.named = [False] * len(things)

    def name(self, words: Sequence[str]) -> bool:
        """Mark the thing of the first of its words that is among `words`. Returns whether there is one."""
        place = next((place for word, place in self._owners if word in words), None)
        if place is not None:
            self.named[place] = True
        return place is not None


def judge(line: AmberLine) -> Judged:
    """The official decisions about one description.

    A word that is likely made up, or like one, is so even where it is like something that is there; only the latter saves it.
    """
    there, likely = _Things(line.references), _Things(line.hallu)
    nouns = nouns_of(line.prediction)
    made_up = 0
    for noun in nouns:
        if noun in SAFE_WORDS or there.name([noun]):
            continue
        # A word is like itself.
        near = [noun, *(line.similar or {}).get(noun, ())]
        likely.name([noun])
        likely.name(near)
        made_up += not there.name(near)
    return Judged(len(nouns), made_up, tuple(there.named), tuple(likely.named))


def _percent(part: float, whole: float, start: float = START) -> float:
    return round(part / (whole + start) * 100, 1)


def _described(found: Sequence[Judged]) -> dict[str, float]:
    """CHAIR, Cover, Hal and Cog in %, as the script rounds them."""
    there, likely = [own.there for own in found], [own.likely for own in found]
    return {
        "chair": _percent(sum(own.made_up for own in found), sum(own.kept for own in found)),
        "cover": _percent(sum(map(sum, there)), sum(map(len, there))),
        "hal": round(100 - sum(own.made_up == 0 for own in found) / (len(found) + START) * 100, 1),
        "cog": _percent(sum(map(sum, likely)), sum(map(len, likely))),
    }


def _answered(
    lines: Sequence[AmberLine], said: Sequence[str], start: float = START, f1_start: float = F1_START
) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of no in %, as the script rounds them, F1 from the rounded two."""
    pairs = [(own, line.references[0]) for own, line in zip(said, lines, strict=True)]
    both = pairs.count(("no", "no"))
    precision = _percent(both, sum(own == "no" for own, _ in pairs), start)
    recall = _percent(both, sum(gold == "no" for _, gold in pairs), start)
    return {
        "accuracy": _percent(sum(own == gold for own, gold in pairs), len(pairs), start),
        "precision": precision,
        "recall": recall,
        "f1": round(2 * (precision / 100) * (recall / 100) / ((precision + recall) / 100 + f1_start) * 100, 1),
    }


def _group_of(category: str) -> str:
    if category == EXISTENCE:
        return "existence"
    return "attribute" if category in ATTRIBUTES.values() else "relation"


@METRICS.register("amber")
class AmberScore(Metric):
    """`generative`: CHAIR, Cover, Hal, Cog; `discriminative`: accuracy, precision, recall, F1 of no; in %, rounded as there.

    `score` is the AMBER score in 0–1, the mean of 1 − CHAIR and F1, or the one of them that there are lines of. A description
    scores 1 if nothing in it is made up. Answers are right if they are `Yes` or `No`, or by `first_word` begin so.
    """

    line = AmberLine
    parse: Literal["official", "first_word"] = "official"

    def score(self, lines: Sequence[AmberLine]) -> Result:
        described = [line for line in lines if line.category == GENERATIVE]
        asked = [line for line in lines if line.category != GENERATIVE]
        judged = [judge(line) for line in described]
        said = [self._said(line.prediction) for line in asked]
        scores: dict[str, Any] = {}
        if described:
            scores["generative"] = _described(judged)
        if asked:
            scores["discriminative"] = _answered(asked, said) | {"by_kind": _by_kind(asked, said)}
        shares = [1 - scores["generative"]["chair"] / 100] if described else []
        shares += [scores["discriminative"]["f1"] / 100] if asked else []
        each_judged, each_said = iter(judged), iter(said)
        per_line = [
            float(
                next(each_judged).made_up == 0 if line.category == GENERATIVE else next(each_said) == line.references[0]
            )
            for line in lines
        ]
        return Result({"score": sum(shares) / len(shares)} | scores, per_line, _notes(described, said))

    def _said(self, answer: str) -> str:
        """`yes`, `no` or "" for anything else."""
        if self.parse == "first_word":
            words = answer.strip().split()
            answer = words[0].strip(".,!:;").capitalize() if words else ""
        return answer.lower() if answer in ("Yes", "No") else ""


def _by_kind(lines: Sequence[AmberLine], said: Sequence[str]) -> dict[str, dict[str, float]]:
    kinds: dict[str, list[int]] = {name: [] for name in ("existence", "attribute", *ATTRIBUTES, "relation")}
    attributes = {category: name for name, category in ATTRIBUTES.items()}
    for number, line in enumerate(lines):
        kinds[_group_of(line.category)].append(number)
        if line.category in attributes:
            kinds[attributes[line.category]].append(number)
    return {
        name: _answered([lines[n] for n in own], [said[n] for n in own], *STARTS.get(name, (START, F1_START)))
        for name, own in kinds.items()
        if own
    }


def _notes(described: Sequence[AmberLine], said: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if any(line.similar is None for line in described):
        notes.append(
            f"near-synonyms weren't looked up ({SIMILAR} isn't there): more counts as made up than by the authors' script"
        )
    if said.count(""):
        notes.append(f'{said.count("")} answer(s) are neither "Yes" nor "No" to the letter, and are wrong')
    return tuple(notes)


class _Query(Record):
    id: int
    image: str
    query: str


class _Queries(RootModel[list[_Query]]):
    pass


class _Annotation(Record):
    id: int
    type: str
    truth: list[str] | Literal["yes", "no"]
    hallu: list[str] = Field(default_factory=list)


class _Annotations(RootModel[list[_Annotation]]):
    pass


class _Similar(RootModel[dict[str, list[str]]]):
    pass


def _places(root: Path, name: str) -> tuple[Path, ...]:
    """Where an image may lie: the archive's folder goes by either name, or was left out."""
    return root / "image" / name, root / "images" / name, root / name


@BENCHMARKS.register("amber")
class Amber(Benchmark):
    """All of it; `amber_generative` and `amber_discriminative` are its parts."""

    folder = "amber"
    metric = "amber"
    max_new_tokens = 512
    mirrors = True
    queries: ClassVar[str] = "query_all.json"
    card = Card(
        title="AMBER",
        questions="1,004 images to describe, 14,216 yes/no questions about them",
        files=("data/query/query_all.json", "data/annotations.json", "image/AMBER_*.jpg"),
        source="https://github.com/junyangwang0410/AMBER (images: a Google Drive archive)",
        size="4 MB of text, 0.5 GB of images",
        licence="Apache-2.0; images by their sources' terms",
        protocol="the query, of a yes/no question with LLaVA-1.5's short-answer prompt; the AMBER score, the mean of 1 − "
        "CHAIR and F1 of no. Near-synonyms by a table that benchmarks/amber_similar_words.py writes to similar_words.json",
    )

    def items(self, data: Path) -> list[Item]:
        root = data / self.folder
        queries = self.find(data, f"data/query/{self.queries}", f"query/{self.queries}")
        annotations_path = self.find(data, "data/annotations.json", "annotations.json")
        annotations = {own.id: own for own in self.read(annotations_path, _Annotations).root}
        similar_path = root / SIMILAR
        similar = self.read(similar_path, _Similar).root if similar_path.is_file() else None
        items = []
        for query in self.read(queries, _Queries).root:
            if query.id not in annotations:
                raise UserError(f"{annotations_path} lacks question {query.id}; get it again from {self.card.source}")
            items.append(self._item(root, query, annotations[query.id], similar))
        return items

    def _item(
        self, root: Path, query: _Query, annotation: _Annotation, similar: Mapping[str, Sequence[str]] | None
    ) -> Item:
        truth = annotation.truth
        fields: dict[str, Any] = {"category": annotation.type}
        if annotation.type == GENERATIVE:
            fields |= {"hallu": annotation.hallu}
            things = [thing for thing in (*truth, *annotation.hallu) if thing in ASSOCIATIONS]
            near = {*things, *(word for thing in things for word in ASSOCIATIONS[thing])}
            if similar is not None:
                own = {word: [other for other in others if other in near] for word, others in similar.items()}
                fields |= {"similar": {word: others for word, others in own.items() if others}}
        else:
            fields |= {"options": ["Yes", "No"]}
        references = (truth,) if isinstance(truth, str) else tuple(truth)
        kind = GENERATIVE if annotation.type == GENERATIVE else _group_of(annotation.type)
        image = next((path for path in _places(root, query.image) if path.is_file()), root / "image" / query.image)
        return Item(str(query.id), shown(image), query.query, references, kind, query.image, fields)

    def has_answer(self, item: Item) -> bool:
        return bool(item.fields["category"] != GENERATIVE)

    def prompt(self, item: Item) -> str:
        return item.question if item.fields["category"] == GENERATIVE else item.question + SHORT_ANSWER


@BENCHMARKS.register("amber_generative")
class AmberGenerative(Amber):
    queries = "query_generative.json"
    card = replace(
        Amber.card,
        title="AMBER, descriptions",
        questions="1,004 images",
        files=("data/query/query_generative.json", *Amber.card.files[1:]),
    )


@BENCHMARKS.register("amber_discriminative")
class AmberDiscriminative(Amber):
    queries = "query_discriminative.json"
    max_new_tokens = 16
    card = replace(
        Amber.card,
        title="AMBER, yes/no questions",
        questions="14,216 about 1,004 images",
        files=("data/query/query_discriminative.json", *Amber.card.files[1:]),
    )
