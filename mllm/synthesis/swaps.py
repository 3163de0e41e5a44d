"""Right answers, and the same answers with one thing changed so that the facts contradict them.

What a fact doesn't name isn't there: an object is absent where no fact speaks of it, by name or by another word.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

from mllm.conversation.boxes.region import Corners
from mllm.synthesis.context import Box, Context
from mllm.synthesis.statements import NUMBERS, alone, counted, plural, sentence, with_article

# Words of which one excludes the others. `orange` is left out: it may be the fruit.
ATTRIBUTES = (
    ("red", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"),
    ("wooden", "metal", "plastic"),
    ("small", "large"),
    ("young", "old"),
    ("empty", "full"),
    ("open", "closed"),
    ("wet", "dry"),
)
SHOWN = "What does the image show?"
DESCRIBE = "Describe the image in detail."
MOST_OVERLAP = 0.3  # of a wrong place with any right one, as intersection over union
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"


@dataclass(frozen=True)
class Swap:
    """A question, the answer that the facts support, and one that they contradict.

    is_statement: whether both answers are sentences that may stand in a description.
    """

    question: str
    chosen: str
    rejected: str
    is_statement: bool = True


@dataclass(frozen=True)
class Scene:
    """The facts of an image, objects that are there, and objects that no fact speaks of."""

    context: Context
    present: tuple[str, ...]
    absent: tuple[str, ...]


def sorts_of(scene: Scene) -> list[str]:
    """The sorts of mistakes that the facts suffice for."""
    return [sort for sort, swaps in SWAPS.items() if next(swaps(scene), None) is not None]


def described(swap: Swap, scene: Scene, rng: random.Random) -> Swap:
    """`swap` among one or two other right sentences; as it is where there are none."""
    right = [sentence(caption) for caption in scene.context.captions]
    right += [other.chosen for other in (*_counts(scene), *_relations(scene))]
    right = [other for other in dict.fromkeys(right) if other != swap.chosen]
    if not right:
        return swap
    beside = rng.sample(right, min(len(right), rng.choice((1, 2))))
    place = rng.randrange(len(beside) + 1)
    chosen, rejected = (" ".join([*beside[:place], own, *beside[place:]]) for own in (swap.chosen, swap.rejected))
    return replace(swap, question=DESCRIBE, chosen=chosen, rejected=rejected)


def _objects(scene: Scene) -> Iterator[Swap]:
    """Captions that name an object once, with an absent one in its place; then whether objects are there."""
    for caption in scene.context.captions:
        for name in scene.present:
            longer = [other for other in scene.present if name in other and other != name]
            named = list(re.finditer(rf"\b(?:(an?) )?({re.escape(name)})\b", caption, re.IGNORECASE))
            if len(named) != 1 or any(other in caption.lower() for other in longer) or plural(name) in caption.lower():
                continue
            start, end = named[0].span()
            for other in scene.absent:
                words = with_article(other) if named[0][1] else other
                yield Swap(SHOWN, sentence(caption), sentence(caption[:start] + words + caption[end:]))
    yield from _existence(scene)


def _existence(scene: Scene) -> Iterator[Swap]:
    """A thing that is there and one that isn't by turns, so that yes is right as often as no."""
    for there, missing in zip(scene.present, scene.absent, strict=False):
        for name, is_there in ((there, True), (missing, False)):
            question = f"Is there {with_article(name)} in the image?"
            yes, no = f"Yes, there is {with_article(name)} in the image.", f"No, there is no {name} in the image."
            yield Swap(question, *((yes, no) if is_there else (no, yes)), is_statement=False)


def _attributes(scene: Scene) -> Iterator[Swap]:
    """Captions with one word of a group, with another in its place that no fact has."""
    for caption in scene.context.captions:
        for group in ATTRIBUTES:
            named = list(re.finditer(rf"\b(?:(an?) )?({'|'.join(group)})\b", caption, re.IGNORECASE))
            if len(named) != 1:
                continue
            start, end = named[0].span()
            for other in group:
                if re.search(rf"\b{other}\b", scene.context.words) is None:
                    words = with_article(other) if named[0][1] else other
                    yield Swap(SHOWN, sentence(caption), sentence(caption[:start] + words + caption[end:]))


def _counts(scene: Scene) -> Iterator[Swap]:
    """Numbers of objects, one more and one fewer; not where a caption gives another number."""
    captions = " ".join(scene.context.captions).lower()
    for name, count in sorted(Counter(box.category.lower() for box in scene.context.boxes).items()):
        told = [word for word in re.findall(rf"(\w+) {re.escape(plural(name))}\b", captions)]
        if (told and count == 1) or any(word in NUMBERS and word != counted(name, count).split()[0] for word in told):
            continue
        question = f"How many {plural(name)} can you see?"
        for wrong in (count - 1, count + 1):
            if wrong:
                yield Swap(question, _there(name, count), _there(name, wrong))


def _there(name: str, count: int) -> str:
    return f"There {'is' if count == 1 else 'are'} {counted(name, count)}."


def _relations(scene: Scene) -> Iterator[Swap]:
    """Two single objects that don't overlap from left to right, or from top to bottom, the other way round."""
    for a, b in permutations(alone(scene.context), 2):
        one, other = a.category.lower(), b.category.lower()
        for axis, (before, after) in enumerate((("to the left of", "to the right of"), ("above", "below"))):
            if a.corners[axis + 2] <= b.corners[axis]:
                for first, second, right, wrong in ((one, other, before, after), (other, one, after, before)):
                    chosen, rejected = (f"The {first} is {place} the {second}." for place in (right, wrong))
                    yield Swap(f"Where is the {first}, seen from the {second}?", chosen, rejected)


def _texts(scene: Scene) -> Iterator[Swap]:
    """What is written, with one letter or digit changed, so that no text in the image reads so."""
    for text in scene.context.ocr:
        for place, sign in enumerate(text):
            wrong = text[:place] + _other_sign(sign) + text[place + 1 :]
            if wrong != text and not any(wrong.lower() in other.lower() for other in scene.context.ocr):
                chosen, rejected = (f"The text in the image reads “{words}”." for words in (text, wrong))
                yield Swap("What does the text in the image say?", chosen, rejected)


def _other_sign(sign: str) -> str:
    """Another sign of the same sort, in the same case; one of no alphabet here is itself."""
    for alphabet in ("0123456789", VOWELS, CONSONANTS, VOWELS.upper(), CONSONANTS.upper()):
        if sign in alphabet:
            return alphabet[(alphabet.index(sign) + 3) % len(alphabet)]
    return sign


def _places(scene: Scene) -> Iterator[Swap]:
    """Single objects at their place, and at that of another object or their own mirrored."""
    context = scene.context
    if context.size_px is None:
        return
    height, width = context.size_px
    for box in alone(context):
        name, (x1, y1, x2, y2) = box.category.lower(), box.corners
        mirrored = ((width - x2, y1, width - x1, y2), (x1, height - y2, x2, height - y1))
        others = [*(other.corners for other in context.boxes if other is not box), *mirrored]
        for wrong in dict.fromkeys(others):
            if overlap(wrong, box.corners) <= MOST_OVERLAP:
                chosen, rejected = (
                    f"The {name} is at {Box(name, corners).place(context.size_px)}." for corners in (box.corners, wrong)
                )
                yield Swap(f"Where is the {name}?", chosen, rejected, is_statement=False)


def overlap(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width, height = (min(one[n + 2], other[n + 2]) - max(one[n], other[n]) for n in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


# What can be wrong with an answer, by its name.
SWAPS: dict[str, Callable[[Scene], Iterator[Swap]]] = {
    "object": _objects,
    "attribute": _attributes,
    "count": _counts,
    "relation": _relations,
    "text": _texts,
    "box": _places,
}
