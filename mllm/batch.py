"""What collation produces and the model consumes. B rows, T tokens, N images, S side of the encoder's input in pixels."""

from dataclasses import dataclass, replace
from typing import Any

import torch

IGNORE_INDEX = -100
PADDING_SEGMENT = -1
NO_PARENT = -1


def flat_places(mask: torch.Tensor) -> torch.Tensor:
    """int64 [n]: where `mask` [B, T] holds, counted through all rows in reading order. On a GPU this waits for it."""
    return mask.flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class Batch:
    """Rows of segments, and where in them things stand: known on the CPU, so that no one has to ask the device.

    input_ids, position_ids: int64 [B, T]. segment_ids: int64 [B, T], PADDING_SEGMENT for padding. parent_segment: int64
    [B, segments], for each segment of a row the one whose tokens it also sees (the trunk of a branch), NO_PARENT for most.

    Places count through all rows (`flat_places`), each once and in order. image_places: int64 [image tokens]. target_places,
    target_ids: int64 [targets], where a hidden state has to predict a token, and which.

    pixel_values: [N, 3, S, S], or None when the batch holds no image: float32 as the encoder takes them, or uint8, which
    `pixel_statistics`, float32 [2, 3] (mean and standard deviation of each channel), then turns into that.
    image_token_counts, image_owners: for each image, its number of image tokens and the sample it belongs to.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    parent_segment: torch.Tensor
    image_places: torch.Tensor
    target_places: torch.Tensor
    target_ids: torch.Tensor
    pixel_values: torch.Tensor | None = None
    pixel_statistics: torch.Tensor | None = None
    image_token_counts: tuple[int, ...] = ()
    image_owners: tuple[str, ...] = ()

    @property
    def target_count(self) -> int:
        return len(self.target_ids)

    def normalized_pixels(self) -> torch.Tensor | None:
        """float32 [N, 3, S, S] as the encoder takes them.

        From uint8 by the steps of `ImagePreparer`, each rounded to float32 as there: the same numbers to the last bit.
        """
        if self.pixel_values is None or self.pixel_values.dtype != torch.uint8:
            return self.pixel_values
        if self.pixel_statistics is None:
            raise ValueError("uint8 pixels without the mean and standard deviation that normalize them")
        mean, std = self.pixel_statistics[:, None, :, None, None]
        return self.pixel_values.float().mul_(1 / 255).sub_(mean).div_(std)

    def to(self, device: torch.device) -> "Batch":
        """Copied without waiting where the tensors lie in pinned memory."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In memory that a GPU copies from by itself."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Any) -> "Batch":
        changed: dict[str, Any] = {n: change(value) for n, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **changed)
