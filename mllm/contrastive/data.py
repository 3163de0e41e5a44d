"""Image–caption pairs for contrastive training, augmented and batched as a pure function of the step."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from mllm.errors import UserError
from mllm.images.decode import read_image
from mllm.images.prepare import ImagePreparer


@dataclass(frozen=True)
class Pair:
    """An image file and one caption of it."""

    image: Path
    caption: str


@dataclass(frozen=True)
class PairBatch:
    """pixel_values float32 [B, 3, S, S]; input_ids, attention_mask int64 [B, T]; describes bool [B, B]: see `describes`."""

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    describes: torch.Tensor


def read_pairs(path: Path | str, image_root: Path | str) -> list[Pair]:
    """JSON lines of `{"image": path relative to image_root, "caption": text}`; raises UserError with the line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"pairs file {path} does not exist")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            image, caption = record["image"], record["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: expected an object with image and caption ({error!r})") from None
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{path}:{number}: the caption is empty")
        pairs.append(Pair(Path(image_root) / image, caption))
    if len({pair.caption for pair in pairs}) < 2:
        raise UserError(f"{path}: needs at least two different captions to contrast")
    return pairs


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """A random window of 85–110% of the image's size, on white: moves and scales without touching colours."""
    width, height = image.size
    scale = rng.uniform(0.85, 1.1)
    left = rng.uniform(0, 1) * width * (1 - scale)
    top = rng.uniform(0, 1) * height * (1 - scale)
    box = (left, top, left + width * scale, top + height * scale)
    return image.transform(
        image.size, Image.Transform.EXTENT, box, resample=Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
    )


def describes(captions: list[str]) -> torch.Tensor:
    """bool [B, B], symmetric: true where the words of one caption are all in the other's ("a circle", "a red circle").

    Both then fit the image of the longer one, so neither is evidence against it.
    """
    words = [frozenset(re.findall(r"\w+", caption.lower())) for caption in captions]
    return torch.tensor([[a <= b or b <= a for b in words] for a in words])


class PairBatcher:
    """Turns pairs into batches; an epoch visits every pair at most once, in an order given by (seed, epoch)."""

    def __init__(
        self, pairs: list[Pair], tokenizer: PreTrainedTokenizerBase, preparer: ImagePreparer, batch_size: int, seed: int
    ) -> None:
        if not 2 <= batch_size <= len(pairs):
            raise UserError(
                f"global_batch_size {batch_size}: contrastive training of {len(pairs)} pairs needs 2 to that"
            )
        self.pairs, self.tokenizer, self.preparer = pairs, tokenizer, preparer
        self.batch_size, self.seed = batch_size, seed

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches: a smaller last one would have fewer negatives, so its pairs wait for the next epoch."""
        return len(self.pairs) // self.batch_size

    def indices(self, step: int) -> list[int]:
        epoch, index = divmod(step, self.batches_per_epoch)
        order = list(range(len(self.pairs)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, step: int) -> PairBatch:
        rng = random.Random(f"{self.seed}/augment/{step}")
        pairs = [self.pairs[i] for i in self.indices(step)]
        return self.collate(pairs, [self.preparer(jitter(read_image(p.image), rng)) for p in pairs])

    def collate(self, pairs: list[Pair], pixels: list[torch.Tensor]) -> PairBatch:
        captions = [pair.caption for pair in pairs]
        text = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return PairBatch(torch.stack(pixels), text.input_ids, text.attention_mask, describes(captions))
