"""What a question shows: images and videos, where they lie, and where among its words they stand."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm.conversation.schema import ImagePart, Part, TextPart, VideoPart
from mllm.files import hash_files
from mllm.media.altered import without_change
from mllm.media.clip import DEFAULT_CLIP_LIMITS
from mllm.media.ref import ImageRef, is_stored
from mllm.media.span import without_span
from mllm.outputs import hash_file

_NAMED = re.compile(r"<image ([0-9]+)>")


@dataclass(frozen=True)
class Medium:
    """An image or a video: a file, or what names one inside a file (`mllm.media.ref`).

    A video may also be a folder of frames, or a part of one (`mllm.media.span`).
    """

    source: str
    is_video: bool = False

    @property
    def is_there(self) -> bool:
        file = ImageRef.of(self.source).file
        return file is None or file.is_file() or (self.is_video and file.is_dir())

    @property
    def part(self) -> ImagePart | VideoPart:
        return VideoPart() if self.is_video else ImagePart()


def shown(image: Path | str | None, video: Path | str | None = None) -> tuple[Medium, ...]:
    """The image and then the video of a question, as far as there are any."""
    pairs = ((image, False), (video, True))
    return tuple(Medium(str(source), is_video) for source, is_video in pairs if source is not None)


def placed(text: str, images: Mapping[str, Medium]) -> tuple[str, tuple[Medium, ...], tuple[int, ...]]:
    """Take `<image N>` out of a text: (the words, the images as they are named, before which character each of them stood).

    images: by N. Raises KeyError for an image that isn't there.
    """
    words, media, places = "", [], []
    done = 0
    for found in _NAMED.finditer(text):
        words += text[done : found.start()]
        media.append(images[found[1]])
        places.append(len(words))
        done = found.end()
    return words + text[done:], tuple(media), tuple(places)


def source_hash(source: str) -> str:
    """SHA-256 of a file, of an image inside one, or of the names and contents of a folder of frames.

    Of a part of a video it is that of the video, with the part's times behind it, and of what is altered with the change
    behind it.
    """
    source, change = without_change(source)
    whole, span = without_span(source)
    if is_stored(whole):
        found = hashlib.sha256(ImageRef.of(whole).read(DEFAULT_CLIP_LIMITS.max_bytes)).hexdigest()
    else:
        path = Path(whole)
        found = hash_files(sorted(path.iterdir())) if path.is_dir() else hash_file(path)
    found = found if span is None else f"{found}:{span[0]}:{span[1]}"
    return f"{found}:{change}" if change else found


def parts_of(words: str, media: Sequence[Medium], places: Sequence[int]) -> tuple[Part, ...]:
    """Words with media among them: each stands before the character whose number `places` says, in order.

    Media at one place follow each other. Words between two places are a part of their own; there are no empty ones.
    """
    parts: list[Part] = []
    done = 0
    for medium, place in zip(media, places, strict=True):
        if place > done:
            parts.append(TextPart(text=words[done:place]))
            done = place
        parts.append(medium.part)
    return (*parts, TextPart(text=words[done:])) if done < len(words) or not parts else tuple(parts)
