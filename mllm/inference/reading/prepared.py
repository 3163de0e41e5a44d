"""What a model's own image processor makes of the images of prompts, each sample's prepared once."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from mllm.errors import UserError
from mllm.inference.request import Prompt, PromptImage
from mllm.processor import Processor

Media = Mapping[str, torch.Tensor]


class PreparedImages:
    """Tensors by name for the images of a sample, all together: what one becomes may depend on the others.

    Beyond `budget_bytes` the least recently used are forgotten.
    """

    def __init__(self, processor: Processor, budget_bytes: int = 128 * 2**20) -> None:
        self.processor, self.budget_bytes = processor, budget_bytes
        self._known: OrderedDict[tuple[int, ...], Media] = OrderedDict()

    def of(self, images: Sequence[PromptImage]) -> Media:
        """What `images` become as those of one sample. Raises UserError for an unreadable one, and for other tokens than
        were planned."""
        name = tuple(image.identity for image in images)
        if not name:
            return {}
        if name not in self._known:
            tiles = [self.processor.read_tiles(image.source, image.visual) for image in images]
            self._known[name] = self.processor.prepare([image.visual for image in images], tiles)
        self._known.move_to_end(name)
        media = self._known[name]
        self._forget()
        return media

    def stand_apart(self, prompt: Prompt, place: int) -> bool:
        """Whether the images in front of `place` and those behind become alone what they become together."""
        before, behind = prompt.images_between(0, place), prompt.images_between(place, len(prompt))
        if not before or not behind:
            return True
        try:
            parts = self.of(before), self.of(behind)
        except UserError:  # Other tokens than planned, or a file that is gone.
            return False
        together = self.of([*before, *behind])
        if any(part.keys() != together.keys() for part in parts):
            return False
        return all(_are_joined(whole, *(part[name] for part in parts)) for name, whole in together.items())

    def _forget(self) -> None:
        size = sum(map(_bytes, self._known.values()))
        while size > self.budget_bytes:
            _, media = self._known.popitem(last=False)
            size -= _bytes(media)


def _bytes(media: Media) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in media.values())


def _are_joined(whole: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether `whole` is the other two, one behind the other along some axis, filled with zeros along the others."""
    return any(_are_joined_along(axis, whole, first, second) for axis in range(whole.dim()))


def _are_joined_along(axis: int, whole: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> bool:
    if {first.dim(), second.dim()} != {whole.dim()} or first.shape[axis] + second.shape[axis] != whole.shape[axis]:
        return False
    parts = whole.split([first.shape[axis], second.shape[axis]], axis)
    return all(_is_filled(part, own) for part, own in zip(parts, (first, second), strict=True))


def _is_filled(whole: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether `whole` begins with `part` along every axis and is zero elsewhere."""
    if any(length > room for length, room in zip(part.shape, whole.shape, strict=True)):
        return False
    filled = torch.zeros_like(whole)
    filled[tuple(slice(length) for length in part.shape)] = part
    return torch.equal(filled, whole)
