"""Asking a model the questions of a benchmark, and the same questions without eyes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.evaluation.benchmark import Benchmark, Item, MajorityAnswer
from mllm.evaluation.intervals import bootstrap_interval
from mllm.evaluation.official import OfficialBenchmark
from mllm.evaluation.sampling import swap_partners
from mllm.inference.generate import Request

CONDITIONS = ("model", "withheld", "swapped")
Generate = Callable[[Sequence[Request], int], list[str]]


@dataclass(frozen=True)
class Answer:
    """One question, asked under one condition."""

    condition: str
    item_id: str
    type: str
    group: str
    question: str
    image: str | None
    answer: str
    references: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Score:
    """Mean score in 0–1 with its 95% interval over images; type `overall` covers all."""

    condition: str
    type: str
    score: float
    low: float
    high: float
    count: int


def request_of(prompt: str, image: str | None) -> Request:
    parts = (TextPart(text=prompt),) if image is None else (ImagePart(), TextPart(text=prompt))
    return Request((Message(role="user", content=parts),), () if image is None else (image,))


def ask(benchmark: Benchmark, items: Sequence[Item], condition: str, generate: Generate, seed: int) -> list[Answer]:
    """Answers under `model` (the item's image), `withheld` (no image) or `swapped` (another item's image).

    Equal requests are generated once. Raises UserError naming the first images that are missing.
    """
    if condition == "model":
        images = [_path(item) for item in items]
    elif condition == "withheld":
        images = [None] * len(items)
    else:
        seen = [item for item in items if item.image is not None]
        partners = {item.id: _path(other) for item, other in zip(seen, swap_partners(seen, seed), strict=True)}
        images = [partners.get(item.id) for item in items]
    missing = sorted({str(item.image) for item in items if item.image is not None and not item.image.is_file()})
    if missing:
        raise UserError(f"{len(missing)} image(s) of the benchmark are missing, such as {missing[0]}")
    keys = [(benchmark.prompt(item), image) for item, image in zip(items, images, strict=True)]
    distinct = list(dict.fromkeys(keys))
    texts = generate([request_of(prompt, image) for prompt, image in distinct], benchmark.max_new_tokens)
    answers = dict(zip(distinct, texts, strict=True))
    given = [answers[key] for key in keys]
    if isinstance(benchmark, OfficialBenchmark):
        scores = benchmark.score_each(given, items)
    else:
        scores = [benchmark.score(text, item) for text, item in zip(given, items, strict=True)]
    return [
        _answer(item, condition, image, text, score)
        for item, image, text, score in zip(items, images, given, scores, strict=True)
    ]


def _path(item: Item) -> str | None:
    return None if item.image is None else str(item.image)


def ask_majority(benchmark: Benchmark, items: Sequence[Item], majority: MajorityAnswer) -> list[Answer]:
    """What the commonest training answer to each question's text would score."""
    texts = [majority.predict(item.question) for item in items]
    return [
        _answer(item, "majority", None, text, benchmark.score(text, item))
        for item, text in zip(items, texts, strict=True)
    ]


def _answer(item: Item, condition: str, image: str | None, text: str, score: float) -> Answer:
    return Answer(
        condition,
        item.id,
        item.type,
        item.group,
        item.question,
        image,
        text,
        item.references,
        score,
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
