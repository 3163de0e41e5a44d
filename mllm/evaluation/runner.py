"""Asking a model the questions of a benchmark, and the same questions without eyes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from mllm.errors import UserError
from mllm.evaluation.benchmark import Benchmark, Item, MajorityAnswer
from mllm.evaluation.intervals import bootstrap_interval
from mllm.evaluation.official import OfficialBenchmark
from mllm.evaluation.question import Question, Reply
from mllm.evaluation.sampling import swap_partners
from mllm.media.ref import ImageRef

CONDITIONS = ("model", "withheld", "swapped")
Generate = Callable[[Sequence[Question]], Sequence[Reply]]


@dataclass(frozen=True)
class Answer:
    """One question, asked under one condition; `logprob` is the answer's, None where it isn't known."""

    condition: str
    item_id: str
    type: str
    group: str
    question: str
    image: str | None
    answer: str
    references: tuple[str, ...]
    score: float
    logprob: float | None = None


@dataclass(frozen=True)
class Score:
    """Mean score in 0–1 with its 95% interval over images; type `overall` covers all."""

    condition: str
    type: str
    score: float
    low: float
    high: float
    count: int


def questions_of(
    benchmark: Benchmark, items: Sequence[Item], condition: str, seed: int, by_likelihood: bool = False
) -> list[Question]:
    """What is asked under `model` (the item's image), `withheld` (no image) or `swapped` (another item's image).

    by_likelihood: where an item has options, the answer is the likeliest of them.
    """
    if condition == "model":
        images = [_path(item) for item in items]
    elif condition == "withheld":
        images = [None] * len(items)
    else:
        seen = [item for item in items if item.image is not None]
        partners = {item.id: _path(other) for item, other in zip(seen, swap_partners(seen, seed), strict=True)}
        images = [partners.get(item.id) for item in items]
    return [
        Question(benchmark.prompt(item), image, benchmark.max_new_tokens, options_of(item) if by_likelihood else ())
        for item, image in zip(items, images, strict=True)
    ]


def options_of(item: Item) -> tuple[str, ...]:
    """The answers that an item offers: letters where its options have them, else their texts; () without any."""
    return tuple(str(option) for option in item.fields.get("options") or ())


def ask(
    benchmark: Benchmark,
    items: Sequence[Item],
    condition: str,
    generate: Generate,
    seed: int,
    by_likelihood: bool = False,
) -> list[Answer]:
    """Answers to `questions_of`, scored. Equal questions are handed to `generate` once.

    Raises UserError naming the first images that are missing.
    """
    missing = missing_images(items)
    if missing:
        raise UserError(f"{len(missing)} image(s) of the benchmark are missing, such as {next(iter(missing))}")
    questions = questions_of(benchmark, items, condition, seed, by_likelihood)
    distinct = list(dict.fromkeys(questions))
    replies = dict(zip(distinct, generate(distinct), strict=True))
    given = [replies[question] for question in questions]
    if isinstance(benchmark, OfficialBenchmark):
        scores = benchmark.score_each([reply.text for reply in given], items)
    else:
        scores = [benchmark.score(reply.text, item) for reply, item in zip(given, items, strict=True)]
    return [
        _answer(item, condition, question.image, reply, score)
        for item, question, reply, score in zip(items, questions, given, scores, strict=True)
    ]


def missing_images(items: Sequence[Item]) -> list[str]:
    """Image files that items name and that aren't there."""
    named = {item.image for item in items if item.image is not None}
    return sorted(str(image) for image in named if not ImageRef.of(image).is_there)


def _path(item: Item) -> str | None:
    return None if item.image is None else str(item.image)


def ask_majority(benchmark: Benchmark, items: Sequence[Item], majority: MajorityAnswer) -> list[Answer]:
    """What the commonest training answer to each question's text would score."""
    texts = [majority.predict(item.question) for item in items]
    return [
        _answer(item, "majority", None, Reply(text), benchmark.score(text, item))
        for item, text in zip(items, texts, strict=True)
    ]


def _answer(item: Item, condition: str, image: str | None, reply: Reply, score: float) -> Answer:
    return Answer(
        condition,
        item.id,
        item.type,
        item.group,
        item.question,
        image,
        reply.text,
        item.references,
        score,
        reply.logprob,
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


def as_records(entries: Sequence[Answer] | Sequence[Score]) -> list[dict]:
    return [asdict(entry) for entry in entries]
