"""Scoring answers: what each is worth, and what all of them together are, with intervals over images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mllm.evaluation.asking import Question, Reply, Subject
from mllm.evaluation.benchmark import Benchmark, Item, MajorityAnswer
from mllm.evaluation.conditions import CONTRASTS, INJECTIONS
from mllm.evaluation.controls import items_under
from mllm.evaluation.injection import count_flips, planted_answers
from mllm.evaluation.medium import Medium
from mllm.evaluation.plan import Chosen
from mllm.evaluation.statistics import bootstrap_interval


@dataclass(frozen=True)
class Answer:
    """One question, asked under one condition; `logprob` is the answer's, None where it isn't known.

    `option_logprobs` are those of `fields["options"]`, where the likeliest was the answer. `confidence` is how sure the
    answer is by the calibration of the model, `abstained` whether that is less than was asked for; None without one.
    `fields` are what the metric's lines need beside the references, so that answers can be scored again from their file.
    """

    condition: str
    item_id: str
    type: str
    group: str
    question: str
    media: tuple[Medium, ...]
    answer: str
    references: tuple[str, ...]
    score: float
    logprob: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    option_logprobs: tuple[float, ...] = ()
    confidence: float | None = None
    abstained: bool | None = None


@dataclass(frozen=True)
class Score:
    """Mean score in 0–1 with its 95% interval over images; type `overall` covers all."""

    condition: str
    type: str
    score: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Outcome:
    """Answers, their scores and the official numbers (by condition), each by benchmark.

    `outcome[name]` is the model's own score on a benchmark over all types, with its interval.
    """

    answers: dict[str, list[Answer]]
    scores: dict[str, list[Score]]
    official: dict[str, dict[str, dict[str, Any]]]

    def __getitem__(self, name: str) -> Score:
        return next(s for s in self.scores[name] if (s.condition, s.type) == ("model", "overall"))

    def empty_answers(self, name: str) -> int:
        """How many of the model's own answers to a benchmark have no words."""
        return sum(answer.condition == "model" and not answer.answer for answer in self.answers[name])


def score_plan(
    plan: Sequence[Chosen], replies: Mapping[Question, Reply], seed: int, subject: Subject | None = None
) -> Outcome:
    """Replies to the questions of a plan → answers and scores under its conditions, with the majority's beside them.

    subject: who replied, and knows how it writes places; None: whoever reads them reads any text.
    """
    outcome = Outcome({}, {}, {})
    for chosen in plan:
        found, official = [], {}
        for condition, questions in chosen.questions.items():
            given = [replies[question] for question in questions]
            items = tuple(items_under(chosen.benchmark, chosen.items, condition))
            if subject is not None and chosen.benchmark.answers_with_places:
                items = tuple(_with_places(*pair, subject) for pair in zip(items, questions, given, strict=True))
            answers, result = score_answers(chosen.benchmark, items, condition, questions, given)
            found += answers
            official[condition] = result
        _add_flips(chosen, found, official, seed)
        _add_yes_shares(found, official)
        if chosen.majority is not None:
            found += score_majority(chosen.benchmark, chosen.items, chosen.majority)
        outcome.answers[chosen.name], outcome.scores[chosen.name] = found, summarize(found, seed)
        outcome.official[chosen.name] = official
    return outcome


def _add_yes_shares(found: Sequence[Answer], official: dict[str, dict[str, Any]]) -> None:
    """Where answers were contrasted, say how many of each condition begin with yes: a contrast is known to move just that."""
    if not official.keys() & set(CONTRASTS):
        return
    for condition in official:
        said = [answer.answer for answer in found if answer.condition == condition]
        share = sum(text.lower().startswith("yes") for text in said) / len(said)
        official[condition] = official[condition] | {"begins_with_yes": share}


def _add_flips(chosen: Chosen, found: Sequence[Answer], official: dict[str, dict[str, Any]], seed: int) -> None:
    """Count the answers that turned to what was planted, under each condition that writes into images."""
    written = [condition for condition in INJECTIONS if condition in official]
    if not written:
        return
    planted = planted_answers(chosen.benchmark, chosen.items, seed)
    said = {c: [answer.answer for answer in found if answer.condition == c] for c in ("model", *written)}
    for condition in written:
        flips = count_flips(chosen.benchmark, chosen.items, planted, said["model"], said[condition], seed)
        official[condition] = official[condition] | {"flips": flips}


def _with_places(item: Item, question: Question, reply: Reply, subject: Subject) -> Item:
    """The item with what its reply names as fields of a line: `boxes` (points have none) and `points` (of boxes the middle).

    They are of the image that was shown, and where none was, of the item's own.
    """
    regions = subject.places(reply.text, question.media or item.media)
    if regions is None:
        return item
    boxes = [list(region.bounds) for region in regions if region.kind != "point"]
    bounds = [region.bounds for region in regions]
    points = [[(left + right) / 2, (top + bottom) / 2] for left, top, right, bottom in bounds]
    return replace(item, fields={**item.fields, "boxes": boxes, "points": points})


def score_answers(
    benchmark: Benchmark, items: Sequence[Item], condition: str, questions: Sequence[Question], replies: Sequence[Reply]
) -> tuple[list[Answer], dict[str, Any]]:
    """Score the replies to items' questions under a condition.

    Returns an answer for each item with its score, and the official numbers of all of them, with notes for a reader.
    """
    replies = [_as_read(benchmark, reply) for reply in replies]
    result = benchmark.score_all([reply.text for reply in replies], items)
    answers = [
        _answer(item, condition, question.media, reply, score)
        for item, question, reply, score in zip(items, questions, replies, benchmark.scores_of(result), strict=True)
    ]
    return answers, result.scores | ({"notes": list(result.notes)} if result.notes else {})


def _as_read(benchmark: Benchmark, reply: Reply) -> Reply:
    """A reply with the text that is scored: what was said, or its log-probability where that is measured."""
    return replace(reply, text=repr(reply.logprob)) if benchmark.measures else reply


def score_majority(benchmark: Benchmark, items: Sequence[Item], majority: MajorityAnswer) -> list[Answer]:
    """What the commonest training answer to each question's text would score."""
    texts = [majority.predict(item.question) for item in items]
    scores = benchmark.score_each(texts, items)
    return [
        _answer(item, "majority", (), Reply(text), score)
        for item, text, score in zip(items, texts, scores, strict=True)
    ]


def _answer(item: Item, condition: str, media: tuple[Medium, ...], reply: Reply, score: float) -> Answer:
    return Answer(
        condition,
        item.id,
        item.type,
        item.group,
        item.question,
        media,
        reply.text,
        item.references,
        score,
        reply.logprob,
        item.fields,
        reply.option_logprobs,
    )


def summarize(answers: Sequence[Answer], seed: int) -> list[Score]:
    """Scores by condition, over all and by type, in the order of first appearance."""
    out = []
    for condition in dict.fromkeys(answer.condition for answer in answers):
        own = [answer for answer in answers if answer.condition == condition]
        types = dict.fromkeys(answer.type for answer in own)
        for kind in ("overall", *(types if len(types) > 1 else ())):
            chosen = own if kind == "overall" else [answer for answer in own if answer.type == kind]
            scores = [answer.score for answer in chosen]
            low, high = bootstrap_interval(scores, [answer.group for answer in chosen], seed)
            out.append(Score(condition, kind, sum(scores) / len(scores), low, high, len(scores)))
    return out


def as_records(entries: Sequence[Answer] | Sequence[Score]) -> list[dict[str, Any]]:
    """Answers or scores as they are written to files."""
    return [asdict(entry) for entry in entries]
