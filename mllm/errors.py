"""Errors that are the user's to mend, and the exit codes of errors."""

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and how to mend it.

    Every command turns it into that line on stderr and exit code 2; a stack trace is kept for our own mistakes.
    """


class BadSampleError(UserError):
    """One sample can't be used (corrupt image, no assistant turn, too long); `on_bad_sample` decides what follows."""

    def __init__(self, sample_id: str, kind: str, reason: str, place: str = "") -> None:
        """place: where the sample was read, `file:line` or alike; it opens the reason unless the id says it already."""
        self.sample_id = sample_id
        self.kind = kind
        self.reason = f"{place}: {reason}" if place and place != sample_id else reason
        super().__init__(f"sample {sample_id!r}: {self.reason}")


class ConversationRefusedError(UserError):
    """A prompt format renders conversations, but not this one (a system turn under a template without any, for one)."""


class ImageBudgetError(UserError):
    """The images of a conversation become more image tokens than the model's settings allow."""


class TimeIsUp(KeyboardInterrupt):
    """The run has saved and ended because its job's time is nearly over; the same command goes on."""
