"""What a model's own processor makes of a sample's images: the ids that stand for each, and the tensors that it takes."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

from mllm.errors import ConversationRefusedError, UserError
from mllm.media.visual import Clip, Crop, Media, Size, Visual

Ids = tuple[int, ...]
# Sizes at which counts by size are held against what the processor does: plain, small, wide, tall, odd.
PROBE_SIZES: tuple[Size, ...] = ((64, 64), (7, 9), (30, 600), (600, 30), (333, 487), (224, 224), (900, 1300))
KNOWN_SIZES = 4096
OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets")


class Replacement(NamedTuple):
    """What stands for an image: ids that begin and end with a special token, and plain text around them, which is tokenized
    with the words that it stands beside."""

    before: str
    ids: Ids
    after: str


class Frame(NamedTuple):
    """What every image's replacement has in common: text and ids on both sides of the image tokens; beside: how many more
    tokens are counted than these."""

    before: str
    opening: Ids
    closing: Ids
    after: str
    beside: int

    def around(self, image_token_id: int, count: int) -> Replacement:
        """The replacement of an image of so many tokens as are counted."""
        ids = (*self.opening, *[image_token_id] * (count - self.beside), *self.closing)
        return Replacement(self.before, ids, self.after)


class Replacements:
    """Asks the processor about all images of a sample together: what one becomes may depend on the others."""

    def __init__(self, peer: ProcessorMixin) -> None:
        """Raises UserError for a processor that doesn't say what an image becomes."""
        self.peer, self.name = peer, type(peer).__name__
        token = getattr(peer, "image_token", None)
        if not isinstance(token, str) or not hasattr(peer, "tokenizer"):
            raise UserError(
                f"{self.name} has no image token and tokenizer of its own, so that images have no place in its text"
            )
        self.image_token: str = token
        self.image_token_id: int = peer.tokenizer.convert_tokens_to_ids(self.image_token)
        added = sorted((token.content for token in peer.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in (*added, self.image_token)))
        self.of_sizes = lru_cache(KNOWN_SIZES)(self._of_sizes)
        self._asked = lru_cache(KNOWN_SIZES)(self._question)
        self._counted = self._frame()

    def prepare(self, images: Sequence[Image.Image]) -> tuple[tuple[Replacement, ...], dict[str, torch.Tensor]]:
        """What stands for each of a sample's images, and the tensors of all of them by name, along the first axis.

        Raises UserError for images that the processor refuses.
        """
        try:
            made = self.peer(
                text=[self._asked(len(images))],
                images=[list(images)],
                return_tensors="pt",
                return_text_replacement_offsets=True,
            )
        except Exception as error:  # A processor is a program of somebody else's, which may fail in any way.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{self.name} refuses the image(s): {reason}") from None
        if "text_replacement_offsets" not in made:
            raise UserError(
                f"{self.name} doesn't say what takes an image's place in text: its images reach it otherwise"
            )
        replaced = [own["replacement"] for own in made["text_replacement_offsets"][0] if own["type"] == "image"]
        if len(replaced) != len(images):
            raise UserError(f"{self.name} says of {len(replaced)} of {len(images)} images what they become in text")
        media = {name: value for name, value in made.items() if name not in OF_TEXT and isinstance(value, torch.Tensor)}
        return tuple(self._tokenized(text) for text in replaced), media

    def _question(self, images: int) -> str:
        """A text that shows so many images, as the chat template writes it: some processors look at what stands around."""
        try:
            written: str = self.peer.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}] * images}], tokenize=False
            )
        except Exception:  # A template is a program of somebody else's, and is asked for more than images elsewhere.
            written = ""
        return written if written.count(self.image_token) == images else self.image_token * images

    def _tokenized(self, text: str) -> Replacement:
        found = list(self._special.finditer(text))
        if not found:
            raise UserError(f"{self.name} puts plain text in an image's place, which can't be told from words")
        begin, end = found[0].start(), found[-1].end()
        ids = self.peer.tokenizer(text[begin:end], add_special_tokens=False).input_ids
        return Replacement(text[:begin], tuple(ids), text[end:])

    def blanks(self, sizes: Sequence[Size]) -> tuple[tuple[Replacement, ...], dict[str, torch.Tensor]]:
        """`prepare` of black images."""
        return self.prepare([Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)) for size in sizes])

    def _of_sizes(self, sizes: tuple[Size, ...]) -> tuple[Replacement, ...]:
        """What stands for images of these sizes, all of one sample, without a pixel of them."""
        if not sizes:
            return ()
        if self._counted is not None:
            return tuple(self._counted.around(self.image_token_id, count) for count in self._counts(sizes))
        return self.blanks(sizes)[0]

    def _counts(self, sizes: Sequence[Size]) -> list[int]:
        found = self.peer._get_num_multimodal_tokens(image_sizes=[list(size) for size in sizes])
        return [int(count) for count in found["num_image_tokens"]]

    def _frame(self) -> Frame | None:
        """What the replacements of images of several sizes have in common.

        None where it isn't the same for all, or the processor's count by size isn't what it makes: then blank images are
        prepared to find out.
        """
        if not hasattr(self.peer, "_get_num_multimodal_tokens"):
            return None
        frames: set[Frame | None] = set()
        for sizes in [*((size,) for size in PROBE_SIZES), PROBE_SIZES[:3]]:
            try:
                made, _ = self.blanks(sizes)
            except UserError:  # One that the processor refuses is no sample's either.
                continue
            try:
                counts = self._counts(sizes)
            except Exception:  # As above; where it can't count it doesn't.
                return None
            frames |= {self._split(own, count) for own, count in zip(made, counts, strict=True)}
        return next(iter(frames)) if len(frames) == 1 else None

    def _split(self, made: Replacement, count: int) -> Frame | None:
        ids = made.ids
        if self.image_token_id not in ids:
            return None
        first, own = ids.index(self.image_token_id), ids.count(self.image_token_id)
        if ids[first : first + own] != (self.image_token_id,) * own:
            return None
        return Frame(made.before, ids[:first], ids[first + own :], made.after, count - own)


class PublicPlanner:
    """Plans images by their sizes as the model's own processor does. Videos are refused."""

    def __init__(self, replacements: Replacements) -> None:
        self._replacements = replacements

    def __repr__(self) -> str:
        return f"PublicPlanner({self._replacements.peer})"

    @property
    def depends_on_size(self) -> bool:
        return True

    def plan(self, media: Sequence[Media], turns: Sequence[int] = ()) -> tuple[Visual, ...]:
        """One visual for each image, all of one sample. Raises ConversationRefusedError for a video."""
        sizes = sizes_of(media)
        return tuple(
            Visual((Crop(scaled=size),), (1, 1, 1), len(own.ids))
            for size, own in zip(sizes, self._replacements.of_sizes(sizes), strict=True)
        )

    def longest(self) -> Visual:
        """The longest of the sizes that are tried."""
        return max((self.plan([size])[0] for size in PROBE_SIZES), key=lambda visual: visual.token_count)

    def longest_clip(self) -> Visual:
        return self.longest()


def sizes_of(media: Sequence[Media]) -> tuple[Size, ...]:
    """The sizes of images. Raises ConversationRefusedError for a video."""
    sizes: list[Size] = []
    for medium in media:
        if isinstance(medium, Clip):
            raise ConversationRefusedError("videos aren't shown to a model of transformers here; give frames as images")
        sizes.append(medium)
    return tuple(sizes)
