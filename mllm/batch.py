"""What collation produces and the model consumes. B rows, T tokens, N images, S side of the encoder's input in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

IGNORE_INDEX = -100
PADDING_SEGMENT = -1
NO_PARENT = -1
# Padding attends to itself in pieces of a kernel's tile: as one piece a short row's would cost what a long sample does.
PADDING_PIECE_TOKENS = 128


@dataclass(frozen=True)
class SegmentBounds:
    """Where segments stand in the line of B · T places that the rows make, for kernels that take lengths and no mask.

    Known before the batch is on its device, so that nobody waits for the device to tell.

    lengths, parents: for each row, of each segment its tokens and its trunk (NO_PARENT for most); on the host.
    pieces: int32 [pieces + 1], cumulative: the segments, and padding in pieces of at most PADDING_PIECE_TOKENS.
    longest_piece: tokens.
    branch_places, trunk_places: int64, the places in the line of all tokens of branches, the branches of a trunk one after
    the other, and of the trunks that have branches. branch_bounds, trunk_bounds: int32 [trunks + 1], cumulative, where
    among those each trunk's branches and each trunk begin. longest_branches, longest_trunk: tokens, 0 without trunks.
    """

    lengths: tuple[tuple[int, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    pieces: torch.Tensor
    longest_piece: int
    branch_places: torch.Tensor
    trunk_places: torch.Tensor
    branch_bounds: torch.Tensor
    trunk_bounds: torch.Tensor
    longest_branches: int
    longest_trunk: int

    @classmethod
    def of(cls, lengths: Sequence[Sequence[int]], parents: Sequence[Sequence[int]], width: int) -> "SegmentBounds":
        """Bounds of rows padded to `width` places; lengths and parents: for each row, of each segment."""
        pieces: list[int] = []
        families: list[tuple[range, list[range]]] = []  # a trunk's places, and those of its branches
        for r, (own, above) in enumerate(zip(lengths, parents, strict=True)):
            ends = list(accumulate(own, initial=r * width))
            pieces += own
            padding = (r + 1) * width - ends[-1]
            pieces += [min(PADDING_PIECE_TOKENS, padding - done) for done in range(0, padding, PADDING_PIECE_TOKENS)]
            places = [range(start, stop) for start, stop in pairwise(ends)]
            branches: dict[int, list[range]] = {}
            for segment, parent in enumerate(above):
                if parent != NO_PARENT:
                    branches.setdefault(parent, []).append(places[segment])
            families += [(places[trunk], those) for trunk, those in branches.items()]
        trunk_lengths = [len(trunk) for trunk, _ in families]
        branch_lengths = [sum(map(len, those)) for _, those in families]
        return cls(
            tuple(map(tuple, lengths)),
            tuple(map(tuple, parents)),
            _cumulative(pieces),
            max(pieces),
            torch.tensor([place for _, those in families for branch in those for place in branch], dtype=torch.int64),
            torch.tensor([place for trunk, _ in families for place in trunk], dtype=torch.int64),
            _cumulative(branch_lengths),
            _cumulative(trunk_lengths),
            max(branch_lengths, default=0),
            max(trunk_lengths, default=0),
        )

    @property
    def has_trunks(self) -> bool:
        return self.longest_trunk > 0

    def to(self, device: torch.device) -> "SegmentBounds":
        return replace(self, **_moved(self, device))


def _cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def _moved(owner: Any, device: torch.device) -> dict[str, Any]:
    """The tensors among the fields of a dataclass, by name, on `device`."""
    return {
        name: value.to(device, non_blocking=True)
        for name, value in vars(owner).items()
        if isinstance(value, torch.Tensor)
    }


@dataclass(frozen=True)
class Batch:
    """Rows of segments.

    input_ids, position_ids: int64 [B, T]. targets: int64 [B, T], the token that the hidden state at this place has to
    predict, IGNORE_INDEX where nothing is learned. segment_ids: int64 [B, T], PADDING_SEGMENT for padding.
    parent_segment: int64 [B, segments], for each segment of a row the one whose tokens it also sees (the trunk of a
    branch), NO_PARENT for most. bounds: the same segments as bounds in a line. pixel_values: float32 [N, 3, S, S], or
    None when the batch holds no image.
    image_token_counts, image_owners: for each image, its number of image tokens and the sample it belongs to.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    segment_ids: torch.Tensor
    parent_segment: torch.Tensor
    bounds: SegmentBounds
    pixel_values: torch.Tensor | None
    image_token_counts: tuple[int, ...] = ()
    image_owners: tuple[str, ...] = ()

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device) -> "Batch":
        return replace(self, bounds=self.bounds.to(device), **_moved(self, device))
