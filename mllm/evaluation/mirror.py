"""What becomes of a question when its image is mirrored: left is right, in its words, its options and its answers."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mllm.evaluation.benchmark import Item

_SIDE = re.compile(r"(?<![a-z])(left|right)(?=(?:most|wards?|side|hand|ed)?(?![a-z]))", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def with_sides_exchanged(text: str) -> str:
    """A text in which left is right and right is left, spelled as they were: small, with a capital or in capitals."""
    return _SIDE.sub(lambda found: _spelled_like(found[0], _OTHER[found[0].lower()]), text)


def mirrored_item(item: Item) -> Item:
    """An item about the mirror image: the same truth in words that exchange left and right.

    The type stays, so that the same items are compared under every condition.
    """
    return replace(
        item,
        question=with_sides_exchanged(item.question),
        references=tuple(map(with_sides_exchanged, item.references)),
        fields={name: value if name == "type" else _exchanged(value) for name, value in item.fields.items()},
    )


def _exchanged(value: Any) -> Any:
    if isinstance(value, str):
        return with_sides_exchanged(value)
    if isinstance(value, list | tuple):
        return [_exchanged(own) for own in value]
    if isinstance(value, Mapping):
        return {name: _exchanged(own) for name, own in value.items()}
    return value


def _spelled_like(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
