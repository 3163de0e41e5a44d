"""Objects by name: which of them a text or the facts of an image name."""

import re
from pathlib import Path

from mllm.errors import UserError
from mllm.resources import shipped_unless_there
from mllm.synthesis.context import Context

NEGATION = re.compile(r"\b(no|not|never|none|neither|nor|without|isn't|aren't|cannot|can't|don't|doesn't)\b")
Objects = dict[str, tuple[str, ...]]


def load_objects(prompts: Path) -> Objects:
    """Everyday objects that answers are searched for, and absent ones taken from; `name` or `name: word, word` a line.

    The words are others that may stand for the object: where a fact has one of them, it isn't said to be absent.
    """
    path = shipped_unless_there("prompts", prompts, "objects.txt")
    if not path.is_file():
        raise UserError(f"{path} does not exist; it lists the objects that absent ones are drawn from, one a line")
    objects = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, words = line.partition(":")
        if name.strip():
            objects[name.strip()] = tuple(word.strip() for word in words.split(",") if word.strip())
    return objects


def mentions(text: str, name: str) -> bool:
    """Whether lower-case `text` has the object `name`, in singular or a regular plural."""
    # The first test is the cheap one.
    return name in text and re.search(rf"\b{re.escape(name)}(s|es)?\b", text) is not None


def absent_objects(context: Context, objects: Objects) -> list[str]:
    """Listed objects that no fact speaks of, by name or by another word."""
    words = context.words
    return [name for name, others in objects.items() if not any(mentions(words, word) for word in (name, *others))]


def present_objects(context: Context, objects: Objects) -> list[str]:
    """Objects that are certainly there: those of the boxes, and listed ones that a caption names."""
    captions = " ".join(context.captions).lower()
    named = [name for name in objects if mentions(captions, name)]
    return sorted({*named, *(box.category.lower() for box in context.boxes)})


def sentences(text: str) -> list[str]:
    """The sentences of a text, as far as their stops tell them."""
    return re.split(r"(?<=[.!?;])\s", text)
