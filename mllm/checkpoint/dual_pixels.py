"""What images become for a public dual encoder: as its own image processor says.

S side in pixels.
"""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from mllm.checkpoint.open_clip_config import image_processor, is_open_clip, read_config
from mllm.checkpoint.parts import processor_values, statistics_of
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import Fit
from mllm.model.dual_kinds import packed


class OwnPixels:
    """Makes float32 [3, S, S] pixels by a directory's image processor of transformers.

    It stands beside `ImagePreparer`, for processors with other steps than resizing, cutting and normalizing (ALIGN's).
    """

    fit: Fit | None = None

    def __init__(self, path: str) -> None:
        self.processor: Any = AutoImageProcessor.from_pretrained(path, backend="pil")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = self.processor(images=image, return_tensors="pt").pixel_values[0]
        return pixels


class OwnPatches(OwnPixels):
    """Makes float32 [P + 1, D] of an image's P patches of D numbers: `mllm.model.dual_kinds.packed` (SigLIP 2 NaFlex)."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        found = self.processor(images=image, return_tensors="pt")
        return packed(found.pixel_values[0], found.spatial_shapes[0])


DualPixels = ImagePreparer | OwnPixels


def dual_preparer(directory: Path, image_size_px: int | None, fit: Fit | None) -> DualPixels:
    """Build the pixel preparation of a directory's image processor, with the filter that it resizes by.

    fit: how images become square, None as the processor says. Raises UserError where there is no processor, or a `fit` is
    asked of one whose steps are its own.
    """
    path = str(directory)
    values = image_values(directory)
    takes_patches = "max_num_patches" in values
    # What `mllm clip train` writes says how; transformers' own steps have no word for padding.
    chosen = fit or values.get("fit") or _fit_of(values, image_size_px)
    if chosen is None:
        return OwnPatches(path) if takes_patches else OwnPixels(path)
    if takes_patches or image_size_px is None or not _is_plain(values):
        raise UserError(f"{path}: its image processor has steps of its own, beside which --fit {fit} has no meaning")
    return ImagePreparer(
        image_size_px,
        *statistics_of(path, values),
        chosen,
        resample=Image.Resampling(int(values.get("resample", Image.Resampling.BICUBIC))),
    )


def image_values(directory: Path) -> dict[str, Any]:
    """Read what a dual encoder's image processor does, by the names of transformers; of a directory of open_clip, too."""
    if is_open_clip(directory):
        values: dict[str, Any] = image_processor(read_config(directory)).to_dict()
        return values
    return processor_values(str(directory))


def _is_plain(values: dict[str, Any]) -> bool:
    """Whether an image is resized, perhaps cut, scaled to 0–1 and normalized, and that is all."""
    return (
        all(values.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
        and not any(values.get(step) for step in ("do_pad", "rescale_offset", "include_top"))
        and math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-5)
    )


def _fit_of(values: dict[str, Any], side: int | None) -> Fit | None:
    """Return which `Fit` a processor's steps are; None where they are none of them."""
    if not _is_plain(values):
        return None
    size, cut = (_sides(values.get(key)) for key in ("size", "crop_size"))
    if values.get("do_center_crop"):
        return "crop" if size == {"shortest_edge": side} and cut == {"height": side, "width": side} else None
    return "stretch" if size == {"height": side, "width": side} else None


def _sides(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size or {}).items() if value is not None}
