"""What a filter is given, and what it says."""

from collections.abc import Callable
from dataclasses import dataclass

from mllm.synthesis.parsing import Turns
from mllm.synthesis.prompts import Request


@dataclass(frozen=True)
class Candidate:
    """An answer that could be parsed, before it becomes a sample."""

    request: Request
    turns: Turns

    @property
    def text(self) -> str:
        return "\n".join(part for turn in self.turns for part in turn)


Filter = Callable[[Candidate], str | None]
"""Why a candidate is refused, in a few words; None where it isn't."""
