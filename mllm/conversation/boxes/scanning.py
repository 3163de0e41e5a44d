"""Finding numbers in what a model wrote."""

import re

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(NUMBER)
_ROW = r"\s*,\s*".join([f"({NUMBER})"] * 4)
_LISTED = re.compile(rf"[\[(]\s*{_ROW}\s*[\])]")
_BARE = re.compile(rf"\s*{_ROW}\s*\.?\s*")


def numbers_in(text: str) -> list[float]:
    """All numbers of a text."""
    return [float(number) for number in _NUMBERS.findall(text)]


def lists_of_four(text: str) -> list[tuple[int, list[float]]]:
    """Where four numbers stand in brackets, and the numbers; of a text that is four numbers and nothing more, those."""
    found = list(_LISTED.finditer(text))
    if not found and (bare := _BARE.fullmatch(text)) is not None:
        found = [bare]
    return [(match.start(), [float(number) for number in match.groups()]) for match in found]
