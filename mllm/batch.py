"""What collation produces and the model consumes. B rows, T tokens, N images, S side of the encoder's input in pixels."""

from dataclasses import dataclass, replace
from typing import Any

import torch

IGNORE_INDEX = -100
PADDING_SEGMENT = -1
NO_PARENT = -1


@dataclass(frozen=True)
class Batch:
    """Rows of segments.

    input_ids, position_ids: int64 [B, T]. targets: int64 [B, T], the token that the hidden state at this place has to
    predict, IGNORE_INDEX where nothing is learned. segment_ids: int64 [B, T], PADDING_SEGMENT for padding.
    parent_segment: int64 [B, segments], for each segment of a row the one whose tokens it also sees (the trunk of a
    branch), NO_PARENT for most. pixel_values: float32 [N, 3, S, S], or None when the batch holds no image.
    image_token_counts, image_owners: for each image, its number of image tokens and the sample it belongs to.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    segment_ids: torch.Tensor
    parent_segment: torch.Tensor
    pixel_values: torch.Tensor | None
    image_token_counts: tuple[int, ...] = ()
    image_owners: tuple[str, ...] = ()

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)
