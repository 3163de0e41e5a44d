"""What some language models do to logits behind their head: a factor, and a soft cap (Gemma Team 2024)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LogitRule:
    """logits → factor · logits, and of these cap · tanh(logits / cap) where there is a cap."""

    factor: float = 1.0
    cap: float | None = None

    @property
    def is_plain(self) -> bool:
        return self == LogitRule()

    def tempered(self, temperature: float) -> "LogitRule":
        """The rule whose logits are these, divided by a temperature."""
        return LogitRule(self.factor / temperature, None if self.cap is None else self.cap / temperature)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of any shape → as many, differentiable."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def apply_(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Change `logits` in place; returns the slope of each, None where it is the same for all (`factor`)."""
        if self.factor != 1.0:
            logits.mul_(self.factor)
        if self.cap is None:
            return None
        logits.div_(self.cap).tanh_()
        slopes = logits.square().neg_().add_(1.0).mul_(self.factor)
        logits.mul_(self.cap)
        return slopes


PLAIN = LogitRule()
