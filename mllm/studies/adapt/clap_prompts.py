"""The prompts that CLAP learns from: the authors' template or files of one's own, and how they are augmented."""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm.contrastive.zeroshot import read_lines
from mllm.errors import UserError

# The words of the authors' prompts; 480 combinations.
SIZES = ("large", "normal sized", "small")
COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "black", "white", "brown", "multicolored")
STYLES = ("realistic", "impressionistic")
IMAGE_TYPES = (
    "painting", "sketch", "cartoon", "clipart", "photograph", "infograph", "mosaic art", "sculpture",
)  # fmt: skip
TEMPLATE = "template"
ARTICLE = re.compile(r"\b(an?) (?=(\w))", re.IGNORECASE)


@dataclass(frozen=True)
class PromptChanges:
    """Chances that a prompt loses (or has replaced) its object's size and colour, the image's type and its style, and that
    its halves are swapped: a half, a half, 0, 0 and a half, as the authors have them."""

    size: float = 0.5
    color: float = 0.5
    image_type: float = 0.0
    style: float = 0.0
    swap: float = 0.5
    replaced: bool = False


def prompts_of(source: str, name: str) -> list[str]:
    """List a class's prompts: `template` makes the authors' 480, a folder has a file CLASS.txt of one prompt a line.

    Raises UserError when the file is missing or empty.
    """
    if source == TEMPLATE:
        return [_template(*words, name) for words in itertools.product(STYLES, IMAGE_TYPES, SIZES, COLORS)]
    if not Path(source).is_dir():
        raise UserError(f"the folder of prompts {source} does not exist; give one, or {TEMPLATE!r}")
    return read_lines(Path(source) / f"{name}.txt", "prompt")


def _template(style: str, image_type: str, size: str, color: str, name: str) -> str:
    """Write `a realistic sketch of a large red dog`."""
    return _with_articles(f"a {style} {image_type} of a {size} {color} {name}")


def _with_articles(text: str) -> str:
    return ARTICLE.sub(lambda found: f"{'an' if found[2].lower() in 'aeiou' else 'a'} ", text)


def changed(text: str, changes: PromptChanges, rng: random.Random) -> str:
    """Augment a prompt. Swapped, `a realistic sketch of a large red dog` is `a large red dog in a realistic sketch style`."""
    for words, chance in (
        (SIZES, changes.size),
        (COLORS, changes.color),
        (IMAGE_TYPES, changes.image_type),
        (STYLES, changes.style),
    ):
        if rng.random() < chance:
            text = _without(text, words, changes.replaced, rng)
    image, of, thing = text.partition(" of ")
    if rng.random() < changes.swap and of:
        text = f"{thing} in {image} style"
    return _with_articles(text)


def _without(text: str, words: Sequence[str], is_replaced: bool, rng: random.Random) -> str:
    """Drop the first of the words that the text has, or put another, or none, in its place."""
    word = next((word for word in words if re.search(rf"\b{word}\b", text)), None)
    if word is None:
        return text
    other = rng.choice([*(w for w in words if w != word), ""]) if is_replaced else ""
    return re.sub(r"\s+", " ", re.sub(rf"\b{word}\b", other, text)).strip()
