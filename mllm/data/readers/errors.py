"""What is wrong with one record, apart from where it is."""

from collections.abc import Callable

from mllm.errors import UserError


class BadRecordError(UserError):
    """One record of a file can't be read; `place` is `file:line`, `file[index]` or `file:key`."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


OnError = Callable[[BadRecordError], None]


def raise_error(error: BadRecordError) -> None:
    raise error
