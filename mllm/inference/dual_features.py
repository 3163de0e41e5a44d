"""A dual encoder as a function: images or texts in, normalized features out.

N images or texts, E embedding width.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mllm.checkpoint.dual import dual_directory, load_dual
from mllm.checkpoint.dual_pixels import DualPixels, dual_preparer, image_values
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.media.visual import Fit
from mllm.model.dual_encoder import tokenize, too_long
from mllm.model.dual_kinds import DUAL_KINDS, DualKind, logit_factor_of, unpacked

logger = logging.getLogger(__name__)

Source = TypeVar("Source", bound=Path | str)
CHUNK = 128
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class DualEncoder:
    """Image and text side of a CLIP, SigLIP or another dual encoder, frozen and in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    preparer: DualPixels

    @property
    def is_siglip(self) -> bool:
        """Whether its logits answer yes or no for each pair of an image and a text."""
        return self.kind.asks_each_pair

    @property
    def kind(self) -> DualKind:
        return DUAL_KINDS[self.model.config.model_type]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def raw_pixels_to_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] → float32 [N, E] as the model gives them, before they are normalized; differentiable in the pixels.

        pixel_values: stacked, as the preparer makes them; of a model that takes patches [N, P + 1, D].
        """
        pixels = pixel_values.to(self.device)
        inputs = unpacked(pixels) if self.kind.takes_patches else {"pixel_values": pixels}
        features: torch.Tensor = self.model.get_image_features(**inputs).pooler_output
        return features.float().cpu()

    @torch.no_grad()
    def pixels_to_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] → float32 [N, E]."""
        return F.normalize(self.raw_pixels_to_features(pixel_values), dim=-1)

    def images(self, paths: Sequence[Path | str]) -> torch.Tensor:
        """float32 [N, E]; one chunk of images is in memory at a time."""
        return F.normalize(self.raw_images(paths), dim=-1)

    @torch.no_grad()
    def raw_images(self, paths: Sequence[Path | str]) -> torch.Tensor:
        """`images`, before features are normalized: what linear probes and heads on features are learned on."""
        chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
        features = [
            self.raw_pixels_to_features(torch.stack([self.preparer(read_image(p)) for p in chunk])) for chunk in chunks
        ]
        return torch.cat(features)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, E]. Raises UserError for an empty text; those too long lose their end and are counted in the log."""
        return F.normalize(self.raw_texts(texts), dim=-1)

    @torch.no_grad()
    def raw_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """`texts`, before features are normalized."""
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise UserError(f"text {number} of {len(texts)} is empty")
        long = too_long(self.tokenizer, texts)
        if long:
            limit = self.tokenizer.model_max_length
            logger.warning("%d of %d texts are longer than %d tokens and lose their end", long, len(texts), limit)
        features = []
        for start in range(0, len(texts), CHUNK):
            ids, mask = (t.to(self.device) for t in tokenize(self.tokenizer, texts[start : start + CHUNK]))
            features.append(self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.float())
        return torch.cat(features).cpu()

    @property
    def factor(self) -> float:
        """What cosines are multiplied by to become logits."""
        return logit_factor_of(self.model)

    def probabilities(self, cosines: torch.Tensor) -> torch.Tensor:
        """[N, classes] → the same shape: a softmax over classes, or SigLIP's yes or no for each."""
        if self.is_siglip:
            return torch.sigmoid(self.factor * cosines + self.model.logit_bias.detach().cpu())
        return (self.factor * cosines).softmax(-1)


def load_encoder(path: Path | str, fit: Fit | None = None) -> DualEncoder:
    """A directory or hub id of a dual encoder with tokenizer and image processor, or a finished run's directory.

    fit: how images become square; by default as the model was trained: padded by `train/contrastive.py`, and for others as
    their image processor says.
    """
    model, tokenizer = load_dual(path)
    directory = dual_directory(path)
    if fit is None and "fit" not in image_values(directory) and (directory / "training_log.json").is_file():
        # Written by an earlier `mllm clip train`, whose processor files don't say that it pads.
        fit = "pad"
    preparer = dual_preparer(directory, getattr(model.config.vision_config, "image_size", None), fit)
    model.requires_grad_(False)
    return DualEncoder(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, preparer)


def image_files(folder: Path | str) -> list[Path]:
    """Image files below a folder, by suffix, sorted. Raises UserError when there are none."""
    if not Path(folder).is_dir():
        raise UserError(f"image folder {folder} does not exist")
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def encode_readable(
    encoder: DualEncoder, paths: Sequence[Source], on_skip: Callable[[Source, str], None]
) -> Iterator[tuple[list[Source], torch.Tensor]]:
    """Chunks of paths and their features [N, E]; an unreadable image is given to `on_skip` with the reason."""
    for start in range(0, len(paths), CHUNK):
        good, pixels = [], []
        for path in paths[start : start + CHUNK]:
            try:
                pixels.append(encoder.preparer(read_image(path)))
                good.append(path)
            except UserError as error:
                on_skip(path, str(error))
        if good:
            yield good, encoder.pixels_to_features(torch.stack(pixels))


def readable_features(encoder: DualEncoder, paths: Sequence[Source]) -> tuple[list[Source], torch.Tensor, int]:
    """The images that can be read, their features [N, E], and how many can't, each named in the log.

    Raises UserError where none can.
    """
    kept: list[Source] = []
    features = []
    for chunk, found in encode_readable(encoder, paths, lambda _, reason: logger.warning("left out: %s", reason)):
        kept += chunk
        features.append(found)
    if not features:
        raise UserError(f"none of {len(paths)} images could be read")
    return kept, torch.cat(features), len(paths) - len(kept)
