"""What a contrasted answer is compared with: the same conversation, seen badly, not at all, or under another instruction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mllm.conversation.schema import Message, Part, Shown, TextPart
from mllm.errors import UserError
from mllm.inference.request import Request
from mllm.media.altered import altered_reference
from mllm.media.damage import Damage
from mllm.media.ref import ImageSource

Against = Literal["noise", "no_image", "instruction"]
CONFUSED = "You are a confused observer: you describe what is often seen together, and look at no picture closely."


@dataclass(frozen=True)
class Contrast:
    """How an answer's tokens are contrasted with those of a second conversation, its rival. ℓ, ℓ̃: the logits of both.

    against: the rival shows images of which the share `noise` of every pixel is noise (VCD, Leng et al. 2024, with noise of
    its own kind), shows none (M3ID, Favero et al. 2024), or opens with the system prompt `instruction` (instruction contrast,
    Wang et al. 2024). alpha: tokens are chosen by ℓ + α (ℓ − ℓ̃). beta: a token that is less likely than β times the likeliest
    is never chosen; 0 leaves all. decay: if given, α of the t-th token, counted from 0, is e^(decay · t) − 1 in place of
    `alpha`: M3ID's (1 − γ) / γ with γ = e^(−decay · t), for which it gives 0.02.
    """

    against: Against
    alpha: float = 1.0
    beta: float = 0.1
    decay: float | None = None
    noise: float = 0.5
    instruction: str = CONFUSED

    def __post_init__(self) -> None:
        for name, holds, wanted in (
            ("alpha", 0 <= self.alpha < float("inf"), "a number from 0 on"),
            ("beta", 0 <= self.beta <= 1, "from 0 to 1"),
            ("decay", self.decay is None or 0 <= self.decay < float("inf"), "a number from 0 on"),
            ("noise", 0 < self.noise <= 1, "above 0 and at most 1"),
            ("instruction", bool(self.instruction.strip()), "words"),
        ):
            if not holds:
                raise UserError(f"contrast.{name} is {getattr(self, name)!r}; it has to be {wanted}")

    def strength(self, place: int) -> float:
        """α of the token at `place` of the answer, from 0."""
        return self.alpha if self.decay is None else float(torch.tensor(self.decay * place).expm1())

    def scores(self, own: torch.Tensor, rival: torch.Tensor, place: int) -> torch.Tensor:
        """What the token at `place` is chosen by, float32 [b, K], of the logits [b, K] of both conversations."""
        own = own.float()
        contrasted = own + self.strength(place) * (own - rival.float())
        if not self.beta:
            return contrasted
        least = own.max(-1, keepdim=True).values + torch.tensor(self.beta).log()
        return contrasted.masked_fill(own < least, -torch.inf)

    def rival(self, request: Request) -> Request:
        """The other conversation. Raises UserError where there is no image that it could see otherwise."""
        if self.against == "instruction":
            others = tuple(message for message in request.messages if message.role != "system")
            return Request((Message(role="system", content=self.instruction), *others), request.images)
        if not request.images:
            raise UserError(f"a contrast against {self.against} needs an image or a video in the conversation")
        if self.against == "noise":
            return replace(request, images=tuple(self._noisy(image) for image in request.images))
        return Request(tuple(_without_media(message) for message in request.messages))

    def _noisy(self, image: ImageSource) -> ImageSource:
        if isinstance(image, bytes):
            raise UserError("a contrast against noise takes images that are files; these came with the request")
        return altered_reference(str(image), Damage("noise", self.noise, 0).change)


def _without_media(message: Message) -> Message:
    content: Sequence[Part] = [part for part in message.content if not isinstance(part, Shown)]
    return message.model_copy(update={"content": tuple(content) or (TextPart(text=""),)})
