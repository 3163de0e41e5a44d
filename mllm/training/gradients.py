"""The promise of the first step: every tensor that is to learn gets a gradient, or the run stops."""

from functools import partial

import torch

from mllm.errors import UserError
from mllm.training.engine import Engine

NAMED = 4


class GradientCheck:
    """Notes which trainable tensors of an engine's module get a gradient until `check` is called; then it is done.

    Hooks, since ZeRO 2 and 3 take `.grad` away during the backward; FSDP, whose hooks would be on other tensors, leaves it.
    A gradient of zeros counts: it says
    that the tensor takes part in the loss.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        trainable = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
        self._count = len(trainable)
        self._missing = {name: None for name, _ in trainable}
        self._hooks = [parameter.register_hook(partial(self._note, name)) for name, parameter in trainable]

    def _note(self, name: str, gradient: torch.Tensor) -> None:
        self._missing.pop(name, None)

    def check(self) -> None:
        """Raise UserError, on every rank, if a trainable tensor of any rank got no gradient so far."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name, parameter in self._engine.module.named_parameters():
            if parameter.grad is not None:
                self._missing.pop(name, None)
        missing = list(dict.fromkeys(name for names in self._engine.gather(list(self._missing)) for name in names))
        if missing:
            named = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
            raise UserError(
                f"{len(missing)} of {self._count} trainable tensors got no gradient in the first step: {named}; they "
                "take no part in the loss and would never learn: freeze them (`trainable` in the config)"
            )
