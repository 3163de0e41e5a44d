"""The conversations that conformance is tried on: their images, which are drawn, and their words."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.conversation.schema import ImagePart, Message, Part, Sample, TextPart

# (height, width) of the images that are drawn.
SIZES = {"plain": (40, 60), "wide": (30, 90), "tall": (64, 40)}


@dataclass(frozen=True)
class Trial:
    """What is tried: `samples` of all kinds; two of which `changed` has other words and another image, of the same lengths;
    `sharing`, which open alike; and `chat`, a conversation of several turns."""

    samples: tuple[Sample, ...]
    changed: Sample
    sharing: tuple[Sample, ...]


def draw_images(directory: Path) -> dict[str, str]:
    """Draw images of noise in `directory`: name → path. `other` is as large as `plain`."""
    generator = np.random.default_rng(0)
    paths = {}
    for name, (height, width) in {**SIZES, "other": SIZES["plain"]}.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths[name] = str(directory / f"{name}.png")
        Image.fromarray(pixels).save(paths[name])
    return paths


def trial(directory: Path) -> Trial:
    """The conversations, with images in `directory`."""
    images = draw_images(directory)
    first = _sample("first", [("what is this?", "a cat", ["plain"])], images)
    second = _sample("second", [("how many are there?", "two of them", ["plain"])], images)
    words = _sample("words", [("who are you?", "nobody")], images)
    several = _sample(
        "several", [("which is larger?", "the second", ["wide", "tall"]), ("are you sure?", "yes, I am")], images
    )
    changed = _sample("first", [("who is here?!", "a dog", ["other"])], images)
    return Trial((first, second, words, several), changed, (first, second))


def _sample(name: str, turns: list[tuple[str, str] | tuple[str, str, list[str]]], images: dict[str, str]) -> Sample:
    messages: list[Message] = []
    shown: list[str] = []
    for turn in turns:
        own = turn[2] if len(turn) == 3 else []
        parts: tuple[Part, ...] = (*(ImagePart() for _ in own), TextPart(text=turn[0]))
        messages += [Message(role="user", content=parts), Message(role="assistant", content=turn[1])]
        shown += [images[name] for name in own]
    return Sample(id=name, messages=tuple(messages), images=tuple(shown))
