"""Image–caption pairs for contrastive training, augmented and batched as a pure function of the step."""

import random
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from mllm.contrastive.augment import Augmenter, AugmentSettings
from mllm.contrastive.decoding import PairDecoder
from mllm.contrastive.mixture import PairMixture, Pick
from mllm.contrastive.pairs import Pair
from mllm.contrastive.settings import CaptionNoiseSettings
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer
from mllm.model.dual_encoder import tokenize

ALL = slice(None)
DEFAULT_AUGMENT = AugmentSettings()
# Captions that say nothing of any image, as the web's alt-texts do.
BOILERPLATE = (
    "image", "photo", "click to enlarge", "thumbnail", "img_0001.jpg", "untitled", "logo", "picture of the day",
    "image may contain copyright", "download free",
)  # fmt: skip


@dataclass(frozen=True)
class PairBatch:
    """b pairs of a rank, out of the B of the global batch.

    pixel_values float32 [b, 3, S, S]; input_ids, attention_mask int64 [b, T]; describes, same bool [b, B]: see `describes`
    and `same`; alive bool [b]: whether its image could be read, so that the pair counts.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    describes: torch.Tensor
    same: torch.Tensor
    alive: torch.Tensor

    def rows(self, start: int, end: int) -> "PairBatch":
        """Return the pairs from `start` to before `end`."""
        return PairBatch(*(tensor[start:end] for tensor in self.tensors()))

    def to(self, device: torch.device) -> "PairBatch":
        return PairBatch(*(tensor.to(device, non_blocking=True) for tensor in self.tensors()))

    def pin_memory(self) -> "PairBatch":
        return PairBatch(*(tensor.pin_memory() for tensor in self.tensors()))

    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def spoil_captions(pairs: Sequence[Pair], noise: CaptionNoiseSettings, seed: int) -> tuple[list[Pair], dict[str, int]]:
    """Return a copy of `pairs` with shares of captions spoilt, and how many of each kind came out other than they were.

    It is a pure function of the seed. Fewer than the share are spoilt where a caption is one word, or a mismatched one is
    like its own. A mismatched caption comes from the next mismatched pair, so that each still occurs as often. This shows
    what a contrastive loss bears: the setting of ALIGN (Jia et al. 2021, arXiv:2102.05918).
    """
    rng = random.Random(f"{seed}/noise")
    order = list(range(len(pairs)))
    rng.shuffle(order)
    spoilt, counts, start = list(pairs), {}, 0
    for kind in ("mismatched", "truncated", "boilerplate"):
        count = round(getattr(noise, kind) * len(pairs))
        chosen = order[start : start + count]
        start += count
        counts[kind] = 0
        for place, index in enumerate(chosen):
            words = pairs[index].caption.split()
            if kind == "mismatched":
                caption = pairs[chosen[(place + 1) % len(chosen)]].caption
            elif kind == "truncated":
                caption = " ".join(words[: max(1, len(words) // 2)])
            else:
                caption = rng.choice(BOILERPLATE)
            spoilt[index] = replace(pairs[index], caption=caption)
            counts[kind] += caption != pairs[index].caption
    return spoilt, counts


def _words(caption: str) -> frozenset[str]:
    """Return the different words of a caption; one without any ("???", an emoji) is itself a word."""
    return frozenset(re.findall(r"\w+", caption.lower())) or frozenset({caption.strip()})


def describes(captions: list[str], own: slice = ALL) -> torch.Tensor:
    """bool [B, B], or its rows `own`; symmetric.

    True where the words of one caption are all in the other's ("a circle", "a red circle"):
    both then fit the image of the longer one, so neither is evidence against it.
    """
    words = [_words(caption) for caption in captions]
    ids = _numbered(words)
    different = list(dict.fromkeys(words))
    holders: dict[str, set[int]] = {}
    for number, group in enumerate(different):
        for word in group:
            holders.setdefault(word, set()).add(number)
    related = torch.zeros(len(different), len(different), dtype=torch.bool)
    for number, group in enumerate(different):
        # Captions with all of these words: few hold the rarest, so large batches stay cheap.
        longer = set.intersection(*sorted((holders[word] for word in group), key=len))
        related[number, list(longer)] = True
    related = related | related.T
    return related[ids[own]][:, ids]


def same(pairs: list[Pair], own: slice = ALL) -> torch.Tensor:
    """bool [B, B], or its rows `own`; symmetric: true where two pairs have the same words or the same image file."""
    images = _numbered([pair.image for pair in pairs])
    words = _numbered([_words(pair.caption) for pair in pairs])
    return (images[own, None] == images) | (words[own, None] == words)


def _numbered(keys: Sequence[Hashable]) -> torch.Tensor:
    """int64 [B]: equal keys have equal numbers, given in the order of their first place."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


class PairBatcher:
    """Turns pairs into batches, as a function of the seed and the step; an epoch has whole batches of its pairs."""

    def __init__(
        self,
        pairs: PairMixture,
        tokenizer: PreTrainedTokenizerBase,
        preparer: ImagePreparer,
        batch_size: int,
        seed: int,
        augment: AugmentSettings = DEFAULT_AUGMENT,
        decoder: PairDecoder | None = None,
    ) -> None:
        """decoder: what reads images and says which are skipped; by default the thread that asks, and none is."""
        if not 2 <= batch_size <= len(pairs):
            raise UserError(
                f"global_batch_size {batch_size}: contrastive training of {len(pairs)} pairs needs 2 to that"
            )
        self.pairs, self.tokenizer, self.preparer = pairs, tokenizer, preparer
        self.batch_size, self.seed = batch_size, seed
        self.augmenter = Augmenter(augment, preparer.image_size_px, seed)
        self.decoder = decoder or PairDecoder()

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches: a smaller last one would have fewer negatives, so its pairs wait for the next epoch."""
        return len(self.pairs) // self.batch_size

    def picks(self, step: int) -> list[Pick]:
        """The pairs of the batch of optimizer step `step`."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self.pairs.picks(epoch, index * self.batch_size, (index + 1) * self.batch_size)

    def ids(self, step: int) -> tuple[str, ...]:
        """The names of the pairs of the batch of optimizer step `step`."""
        return tuple(map(self.pairs.name, self.picks(step)))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> PairBatch:
        """Return the share of `rank` in the batch of optimizer step `step`; an image that is skipped is blank."""
        pairs = [self.pairs.pair(pick) for pick in self.picks(step)]
        share = len(pairs) // world_size
        own = slice(rank * share, (rank + 1) * share)

        def prepare(place: int, image: Image.Image) -> torch.Tensor:
            return self.preparer(self.augmenter(image, step, own.start + place))

        shape = (self.preparer.channels, self.preparer.side_px, self.preparer.side_px)
        pixels, alive = self.decoder.decode(pairs[own], prepare, shape)
        return self.collate(pairs, pixels, own, alive)

    def collate(
        self, pairs: list[Pair], pixels: torch.Tensor, own: slice = ALL, alive: torch.Tensor | None = None
    ) -> PairBatch:
        """Make tensors of the pairs `own` among the `pairs` of a global batch; `pixels` [b, 3, S, S] are the own ones'.

        alive: bool [b], which of them count; by default all.
        """
        captions = [pair.caption for pair in pairs]
        input_ids, attention_mask = tokenize(self.tokenizer, captions[own])
        counted = torch.ones(len(pixels), dtype=torch.bool) if alive is None else alive
        return PairBatch(pixels, input_ids, attention_mask, describes(captions, own), same(pairs, own), counted)
