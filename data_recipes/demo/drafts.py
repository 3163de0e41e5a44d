"""What a source writes: samples of pictures that have no file yet, balanced, and asked in words as well.

A small language model doesn't know how to hold a question against a description: to "a red circle / is there a blue
shape?" SmolLM2-135M answers at chance. Learned from images alone, the skill waits for features that mean something, and
the features for a skill that reads them. Once it is learned in words, a picture only has to come to read like its caption.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from data_recipes.demo.phrases import Turn, clip_captions, is_negated, write_turns
from data_recipes.demo.picture import Picture
from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.synthesis.prompts import seeded_random

ANSWERED_BY_CAPTION = ("caption", "naming", "category", "reading", "shape", "color", "yes_no")
T = TypeVar("T")


@dataclass(frozen=True)
class Drafted:
    """A sample about a picture that has no file yet; `sample.images` is filled, if it shows it, when it is written."""

    picture: Picture
    sample: Sample


@dataclass(frozen=True)
class ClipPair:
    picture: Picture
    caption: str


@dataclass(frozen=True)
class HeldoutQuestion:
    """`options` are the answers to choose from, where there are such; one of them is right."""

    id: str
    picture: Picture
    question: str
    answer: str
    type: str
    options: tuple[str, ...] = ()


@dataclass
class SourceOutput:
    """Everything one source contributes. `heldout` maps a file's stem to its questions.

    `in_words` is not the source's to fill: the run derives it from the captions and instructions.
    """

    captions: list[Drafted] = field(default_factory=list)
    instruct: list[Drafted] = field(default_factory=list)
    in_words: list[Drafted] = field(default_factory=list)
    clip_pairs: list[ClipPair] = field(default_factory=list)
    heldout_clip_pairs: list[ClipPair] = field(default_factory=list)
    heldout: dict[str, list[HeldoutQuestion]] = field(default_factory=dict)
    requested: Counter[str] = field(default_factory=Counter)


class LoadedSource(Protocol):
    """Pictures of both splits; `filtered` counts, by name of the filter, what was not used."""

    train: list[Picture]
    test: list[Picture]
    filtered: Counter[str]

    def write(self, train: list[Picture], seed: int) -> SourceOutput:
        """Draft everything from `train` (what decontamination left of `self.train`) and, held out, `self.test`."""
        ...


def draft(picture: Picture, sample_id: str, kind: str, turns: list[Turn]) -> Drafted:
    """A sample of these turns; the image comes first, in the first user turn."""
    messages = []
    for index, turn in enumerate(turns):
        text = TextPart(text=turn.question)
        messages.append(Message(role="user", content=(text,) if index else (ImagePart(), text)))
        messages.append(Message(role="assistant", content=(TextPart(text=turn.answer),)))
    return Drafted(picture, Sample(id=sample_id, messages=tuple(messages), source=picture.source, kind=kind))


def pair_captions(pictures: list[Picture], seed: int) -> list[ClipPair]:
    """Return each picture with every short caption that there is for it."""
    return [
        ClipPair(picture, caption)
        for picture in pictures
        for caption in clip_captions(picture, seeded_random(seed, picture.source, "clip", picture.key))
    ]


def pairs_per_text(available: dict[str, int], count: int) -> dict[str, int]:
    """How many yes/no pairs each text gets, evenly, for `count` samples in all (fewer if `available` ends)."""
    pairs = dict.fromkeys(sorted(available), 0)
    left = count // 2
    while left:
        open_texts = [text for text in pairs if pairs[text] < available[text]]
        if not open_texts:
            break
        share, extra = divmod(left, len(open_texts))
        for index, text in enumerate(open_texts):
            added = min(share + (index < extra), available[text] - pairs[text])
            pairs[text] += added
            left -= added
    return pairs


def balanced(candidates: Sequence[tuple[str, bool, T]], count: int, rng: random.Random) -> list[tuple[str, bool, T]]:
    """About `count` of the (text, is yes, item) candidates, yes = no for each text, texts about evenly drawn."""
    by_answer: dict[tuple[str, bool], list[T]] = defaultdict(list)
    for text, is_yes, item in candidates:
        by_answer[text, is_yes].append(item)
    texts = {text for text, _ in by_answer}
    available = {text: min(len(by_answer[text, True]), len(by_answer[text, False])) for text in texts}
    chosen = []
    for text, pairs in pairs_per_text(available, count).items():
        for is_yes in (True, False):
            chosen += [(text, is_yes, item) for item in rng.sample(by_answer[text, is_yes], pairs)]
    return chosen


def in_words(drafts: list[Drafted], rng: random.Random) -> list[Drafted]:
    """Those of `drafts` whose answer follows from a caption, with the caption where the image was.

    Yes/no questions stay balanced, as many yes as no for each text. Kinds end in `_in_words`; a negated yes/no question
    is of the kind `negated_in_words`, so that a recipe can teach it after the plain ones: from both at once little is
    learned at first, since a match means yes to one and no to the other.
    """
    written = []
    for item in drafts:
        turns = write_turns("caption", item.picture, rng) if item.sample.kind in ANSWERED_BY_CAPTION else []
        if turns:
            written.append(_in_words(item, turns[0].answer))
    answered = [(_question(item), item.sample.messages[1].text, item) for item in written]
    yes_no = [(question, answer == "yes", item) for question, answer, item in answered if answer in ("yes", "no")]
    kept = [item for _, answer, item in answered if answer not in ("yes", "no")]
    return kept + [item for _, _, item in balanced(yes_no, len(yes_no), rng)]


def _in_words(item: Drafted, caption: str) -> Drafted:
    sample = item.sample
    question = _question(item)
    message = Message(role="user", content=(TextPart(text=f"{caption}\n"), TextPart(text=question)))
    kind = "negated" if sample.kind == "yes_no" and is_negated(question) else sample.kind
    changes = {"id": f"{sample.id}-in-words", "messages": (message, *sample.messages[1:]), "kind": f"{kind}_in_words"}
    return Drafted(item.picture, sample.model_copy(update=changes))


def _question(item: Drafted) -> str:
    last = item.sample.messages[0].content[-1]
    return last.text if isinstance(last, TextPart) else ""
