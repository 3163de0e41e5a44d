"""What pictures are drawn from, as tensors: text states, an image embedding, cues.

b pictures, T tokens of text, C width of text states, E width of embeddings, k cues.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Conditions:
    """What b pictures are drawn from; at least one of them is there.

    text [b, T, C]: states that the denoiser attends to. image [b, E]: embeddings that are added to the timestep's and become
    tokens. cues [b, k, E]: embeddings of neighbours, a token each.
    """

    text: torch.Tensor | None = None
    image: torch.Tensor | None = None
    cues: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tensors()[0])

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for field in fields(self) if (tensor := getattr(self, field.name)) is not None]

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Conditions":
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(**{name: None if tensor is None else change(tensor) for name, tensor in held.items()})

    def to(self, device: torch.device) -> "Conditions":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def cast(self, dtype: torch.dtype) -> "Conditions":
        return self._each(lambda tensor: tensor.to(dtype))

    def pin_memory(self) -> "Conditions":
        return self._each(lambda tensor: tensor.pin_memory())

    def rows(self, start: int, end: int) -> "Conditions":
        """Return those of the pictures from `start` to before `end`."""
        return self._each(lambda tensor: tensor[start:end])

    def repeated(self, count: int) -> "Conditions":
        """Return those of `count` pictures that are all drawn from the one here."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    @staticmethod
    def joined(parts: Sequence["Conditions"]) -> "Conditions":
        """Return those of all pictures of `parts`, which hold the same kinds of conditions."""
        names = [field.name for field in fields(Conditions) if getattr(parts[0], field.name) is not None]
        return Conditions(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def where(self, keeps_text: torch.Tensor, keeps_image: torch.Tensor, null: "Conditions") -> "Conditions":
        """Return these with `null`, those of one picture, where a picture doesn't keep its own.

        keeps_text, keeps_image: bool [b]; the latter is for cues, too.
        """
        kept = {"text": keeps_text, "image": keeps_image, "cues": keeps_image}
        changed = {}
        for name, keeps in kept.items():
            own, other = getattr(self, name), getattr(null, name)
            if own is not None:
                changed[name] = torch.where(keeps.reshape(-1, *[1] * (own.ndim - 1)), own, other)
        return Conditions(**changed)
