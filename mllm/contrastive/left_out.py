"""Pairs that can't be used or that a filter leaves out: counted, and within bounds."""

from collections import Counter
from dataclasses import dataclass, field

from mllm.errors import UserError

SHOWN_EXAMPLES = 8
# Before so many pairs were met, a few bad ones are no share.
FEWEST_MET = 1000
UNREADABLE = "unreadable"


class TooManyBadError(UserError):
    """More pairs can't be used than may be skipped."""


@dataclass
class LeftOut:
    """Pairs that were met and those of them that were left out, by reason.

    at_once: whether the first that can't be read ends the run. most_share: how large a share may be unreadable. What a filter
    leaves out is no fault.
    """

    at_once: bool
    most_share: float
    met: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Pairs that can't be used."""
        return self.counts[UNREADABLE]

    def add(self, error: UserError) -> None:
        """Count what can't be used. Raises it where it ends the run, and TooManyBadError where it is one too many."""
        if self.at_once:
            raise error
        self.met += 1
        self.counts[UNREADABLE] += 1
        if len(self.examples) < SHOWN_EXAMPLES:
            self.examples.append(str(error))
        self.check()

    def check(self) -> None:
        """Raise TooManyBadError where more are unreadable than may be."""
        if self.bad > self.most_share * max(self.met, FEWEST_MET):
            raise TooManyBadError(
                f"{self.bad} of {self.met} pairs can't be used, more than data.max_bad_share {self.most_share:g} allows; "
                f"such as: {self.examples[-1]}"
            )
