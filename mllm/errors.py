"""Errors that are the user's to mend, and the exit codes of errors."""

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and how to mend it.

    Every command turns it into that line on stderr and exit code 2; a stack trace is kept for our own mistakes.
    """


class BadSampleError(UserError):
    """One sample can't be used (corrupt image, no assistant turn, too long); `on_bad_sample` decides what follows."""

    def __init__(self, sample_id: str, kind: str, reason: str) -> None:
        super().__init__(f"sample {sample_id!r}: {reason}")
        self.sample_id = sample_id
        self.kind = kind
        self.reason = reason


class TimeIsUp(KeyboardInterrupt):
    """The run has saved and ended because its job's time is nearly over; the same command goes on."""
