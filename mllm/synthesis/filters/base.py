"""What a filter is given, and what it says."""

from collections.abc import Callable
from dataclasses import dataclass

from mllm.synthesis.parsing import Turns
from mllm.synthesis.preferences import Paired
from mllm.synthesis.prompts import Request


@dataclass(frozen=True)
class Candidate:
    """An answer that could be parsed, before it becomes a sample.

    pair: of kind `preference`, whose turns are the question and the chosen answer alone.
    """

    request: Request
    turns: Turns
    pair: Paired | None = None

    @property
    def answers(self) -> list[str]:
        """All answers, a rejected one too."""
        return [answer for _, answer in self.turns] + ([] if self.pair is None else [self.pair.rejected])

    @property
    def text(self) -> str:
        rejected = [] if self.pair is None else [self.pair.rejected]
        return "\n".join([*(part for turn in self.turns for part in turn), *rejected])


Filter = Callable[[Candidate], str | None]
"""Why a candidate is refused, in a few words; None where it isn't."""
