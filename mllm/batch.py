"""What collation produces and the model consumes.

B rows, T tokens, N tiles, C channels (three for each encoder), S side of the encoder's input in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

from mllm.media.visual import Visual

IGNORE_INDEX = -100
PADDING_SEGMENT = -1
NO_PARENT = -1
# Padding attends to itself in pieces of a kernel's tile: as one piece a short row's would cost what a long sample does.
PADDING_PIECE_TOKENS = 128


def flat_places(mask: torch.Tensor) -> torch.Tensor:
    """int64 [n]: where `mask` [B, T] holds, counted through all rows in reading order. On a GPU this waits for it."""
    return mask.flatten().nonzero()[:, 0]


def answers_of(batch: "Batch") -> tuple[list[tuple[int, int]], torch.Tensor]:
    """Of a batch on the CPU: (row, segment) of each segment with targets, in order, and its number of them, int64 [answers].

    The targets of a segment follow each other, so that with these lengths a vector of one value a target falls apart into
    answers.
    """
    length, width = batch.input_ids.shape[1], batch.parent_segment.shape[1]
    segments = batch.segment_ids.flatten()[batch.target_places] + batch.target_places // length * width
    found, lengths = torch.unique_consecutive(segments, return_counts=True)
    return [divmod(segment, width) for segment in found.tolist()], lengths


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

    def pin_memory(self) -> "SegmentBounds":
        return replace(self, **_pinned(self))


def _cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def join_media(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Concatenate along the first axis what several samples' images became, by name.

    Where other axes are of unlike lengths, the shorter ones are filled with zeros behind: image processors pad so, too, when
    they are given several samples at once.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _joined([part[name] for part in parts if name in part]) for name in names}


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    longest = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    whole = tensors[0].new_zeros(sum(map(len, tensors)), *longest)
    for start, tensor in zip(accumulate(map(len, tensors), initial=0), tensors, strict=False):
        whole[(slice(start, start + len(tensor)), *(slice(length) for length in tensor.shape[1:]))] = tensor
    return whole


def _tensors(owner: Any) -> dict[str, torch.Tensor]:
    """The tensors among the fields of a dataclass, by name."""
    return {name: value for name, value in vars(owner).items() if isinstance(value, torch.Tensor)}


def _moved(owner: Any, device: torch.device) -> dict[str, Any]:
    """`_tensors` on `device`; from pinned memory without waiting for it."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in _tensors(owner).items()}


def _pinned(owner: Any) -> dict[str, Any]:
    """`_tensors` in memory that a GPU copies from by itself."""
    return {name: tensor.pin_memory() for name, tensor in _tensors(owner).items()}


@dataclass(frozen=True)
class Batch:
    """Rows of segments, and where in them things stand: known on the CPU, so that no one has to ask the device.

    input_ids: int64 [B, T]. position_ids: int64 [B, T], or [axes, B, T] for a model that counts along several. segment_ids:
    int64 [B, T], PADDING_SEGMENT for padding. parent_segment: int64 [B, segments], for each segment of a row the one whose
    tokens it also sees (the trunk of a branch), NO_PARENT for most. bounds: the same segments as bounds in a line.

    Places count through all rows (`flat_places`), each once and in order. image_places: int64 [image tokens]. target_places,
    target_ids: int64 [targets], where a hidden state has to predict a token, and which.

    media: what the images of all samples became, by the name that the model takes it under, along the first axis; empty when
    the batch holds no image. The assembled model takes `tiles` [N, C, S, S], those of all images in order:
    float32 as the encoder takes them, or uint8, which `pixel_statistics`, float32 [2, C] (mean and standard deviation of each
    channel), then turns into that. visuals, image_owners: for each image, what it became and the sample it belongs to.
    token_types: int64 [B, T], for models that are told which tokens are of an image; 0 at text and padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    parent_segment: torch.Tensor
    bounds: SegmentBounds
    image_places: torch.Tensor
    target_places: torch.Tensor
    target_ids: torch.Tensor
    media: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pixel_statistics: torch.Tensor | None = None
    visuals: tuple[Visual, ...] = ()
    image_owners: tuple[str, ...] = ()
    token_types: torch.Tensor | None = None

    @property
    def tiles(self) -> torch.Tensor | None:
        """[N, C, S, S], the tiles that the assembled model sees; None when the batch holds no image."""
        return self.media.get("tiles")

    @property
    def target_count(self) -> int:
        return len(self.target_ids)

    def normalized_tiles(self) -> torch.Tensor | None:
        """float32 [N, C, S, S] as the encoder takes them.

        From uint8 by the steps of `ImagePreparer`, each rounded to float32 as there: the same numbers to the last bit.
        """
        if self.tiles is None or self.tiles.dtype != torch.uint8:
            return self.tiles
        if self.pixel_statistics is None:
            raise ValueError("uint8 pixels without the mean and standard deviation that normalize them")
        mean, std = self.pixel_statistics[:, None, :, None, None]
        return self.tiles.float().mul_(1 / 255).sub_(mean).div_(std)

    def to(self, device: torch.device) -> "Batch":
        media = {name: tensor.to(device, non_blocking=True) for name, tensor in self.media.items()}
        return replace(self, bounds=self.bounds.to(device), media=media, **_moved(self, device))

    def pin_memory(self) -> "Batch":
        media = {name: tensor.pin_memory() for name, tensor in self.media.items()}
        return replace(self, bounds=self.bounds.pin_memory(), media=media, **_pinned(self))

    def tensors(self) -> list[torch.Tensor]:
        return [*_tensors(self).values(), *self.media.values(), *_tensors(self.bounds).values()]
