"""Image–caption pairs for contrastive training, augmented and batched as a pure function of the step."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from mllm.contrastive.augment import Augmenter, AugmentSettings
from mllm.contrastive.caption_prompts import Prompter, PromptSettings
from mllm.contrastive.decoding import PairDecoder
from mllm.contrastive.mixture import PairMixture, Pick
from mllm.contrastive.negatives import NOWHERE, Ignored, describes, same, words_of
from mllm.contrastive.pairs import Pair
from mllm.contrastive.settings import CaptionNoiseSettings
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer
from mllm.model.dual_encoder import tokenize

NOTHING = torch.zeros(0)
DEFAULT_AUGMENT = AugmentSettings()
NO_PROMPTS = PromptSettings()
# Captions that say nothing of any image, as the web's alt-texts do.
BOILERPLATE = (
    "image", "photo", "click to enlarge", "thumbnail", "img_0001.jpg", "untitled", "logo", "picture of the day",
    "image may contain copyright", "download free",
)  # fmt: skip


@dataclass(frozen=True)
class PairBatch:
    """b pairs of a rank, out of the B of the global batch.

    pixel_values float32 [b, 3, S, S]; input_ids, attention_mask int64 [b, T]; alive bool [b]: whether its image could be
    read, so that the pair counts; same, describes int64 [n, 2]: places of pairs that are no negatives, as
    `mllm.contrastive.negatives` lists them. Where they are asked for, patches int64 [b, K]: those of an image that are kept;
    and what a teacher reads and, if it isn't the same, sees: teacher_ids, teacher_mask, teacher_pixels.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    alive: torch.Tensor
    same: torch.Tensor = NOWHERE
    describes: torch.Tensor = NOWHERE
    patches: torch.Tensor = NOTHING
    teacher_ids: torch.Tensor = NOTHING
    teacher_mask: torch.Tensor = NOTHING
    teacher_pixels: torch.Tensor = NOTHING

    def rows(self, start: int, end: int) -> "PairBatch":
        """Return the pairs from `start` to before `end`, for their features; what is no negative stays with the whole."""
        inputs = (self.pixel_values, self.input_ids, self.attention_mask, self.alive)
        own = PairBatch(*(tensor[start:end] for tensor in inputs))
        return replace(own, patches=self.patches[start:end])

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


class TeacherInputs(NamedTuple):
    """What a teacher's inputs are made by; own_preparers: its preparer, where its pixels aren't those of the model."""

    tokenizer: PreTrainedTokenizerBase
    own_preparers: tuple[ImagePreparer, ...]


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
        prompts: PromptSettings = NO_PROMPTS,
        ignored: Ignored = "describes",
        decoder: PairDecoder | None = None,
        kept_patches: tuple[int, int] | None = None,
        teacher: TeacherInputs | None = None,
    ) -> None:
        """decoder: what reads images and says which are skipped; by default the thread that asks, and none is.

        kept_patches: how many patches of an image are kept and how many it has, where some are dropped. teacher: whose inputs
        are made, too.
        """
        if not 2 <= batch_size <= len(pairs):
            raise UserError(
                f"global_batch_size {batch_size}: contrastive training of {len(pairs)} pairs needs 2 to that"
            )
        self.pairs, self.tokenizer, self.preparer = pairs, tokenizer, preparer
        self.batch_size, self.seed, self.ignored = batch_size, seed, ignored
        self.augmenter = Augmenter(augment, preparer.image_size_px, seed)
        self.prompter = Prompter(prompts, seed)
        self.decoder = decoder or PairDecoder()
        self.kept_patches, self.teacher = kept_patches, teacher

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
        picks = self.picks(step)
        share = len(picks) // world_size
        own = slice(rank * share, (rank + 1) * share)
        # Others' captions that say nothing of the loss aren't read: a rank then opens its own lanes of a stream alone.
        needs_all = self.ignored != "none"
        pairs = [self.pairs.pair(pick) for pick in (picks if needs_all else picks[own])]
        shown = pairs[own] if needs_all else pairs

        sides = [self.preparer] if self.teacher is None else [self.preparer, *self.teacher.own_preparers]

        def prepare(place: int, image: Image.Image) -> torch.Tensor:
            augmented = self.augmenter(image, step, own.start + place)
            return torch.cat([side(augmented).flatten() for side in sides])

        sizes = [3 * side.side_px**2 for side in sides]
        flat, alive = self.decoder.decode(shown, prepare, (sum(sizes),))
        pixels = [
            part.unflatten(1, (3, side.side_px, -1)) for part, side in zip(flat.split(sizes, 1), sides, strict=True)
        ]
        texts = [self.prompter(pair.caption, step, own.start + n) for n, pair in enumerate(shown)]
        made = PairBatch(
            pixels[0],
            *tokenize(self.tokenizer, texts),
            alive,
            *self._no_negatives(pairs, own),
            self._patches(step, own),
        )
        if self.teacher is None:
            return made
        ids, mask = tokenize(self.teacher.tokenizer, texts)
        return replace(made, teacher_ids=ids, teacher_mask=mask, teacher_pixels=pixels[1] if pixels[1:] else NOTHING)

    def _patches(self, step: int, own: slice) -> torch.Tensor:
        """int64 [b, K]: the patches that are kept of the images of a step's pairs `own`, if some are dropped."""
        if self.kept_patches is None:
            return NOTHING
        kept, count = self.kept_patches
        draws = (random.Random(f"{self.seed}/patches/{step}/{place}") for place in range(own.start, own.stop))
        return torch.tensor([sorted(draw.sample(range(count), kept)) for draw in draws])

    def _no_negatives(self, pairs: list[Pair], own: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """`same` and `describes` of the pairs `own` among those of a global batch, as far as the loss asks for them."""
        if self.ignored == "none":
            return NOWHERE, NOWHERE
        words = [words_of(pair.caption) for pair in pairs]
        alike = same([pair.image for pair in pairs], words, own)
        return alike, describes(words, own) if self.ignored == "describes" else NOWHERE
