"""References of questions with a closed set of answers: brought to the spelling that the scorer knows, or refused.

An official script compares them as they are, so that `Yes` for `yes` would count as another answer without a word.
"""

import unicodedata
from collections.abc import Callable, Iterable
from string import ascii_uppercase
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from mllm.evaluation.metric import Line
from mllm.evaluation.release import lettered

FIRST_LETTERS = "ABCDE"


def spelled_as(choices: Iterable[str], reference: object) -> str:
    """The one of `choices` that `reference` is but for case, width, and the white space and marks around it.

    Raises ValueError where it is none of them.
    """
    known = {_bare(choice): choice for choice in choices}
    if isinstance(reference, str):
        if reference in known.values():
            return reference
        if _bare(reference) in known:
            return known[_bare(reference)]
    listed = ", ".join(known.values())
    raise ValueError(f"{reference!r} is none of the answers that can be right: {listed}")


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().strip()
    return folded.strip("".join({mark for mark in folded if not mark.isalnum()}))


def _one_of(choices: Iterable[str]) -> Callable[[object], object]:
    known = tuple(choices)

    def check(value: object) -> object:
        references = [value] if isinstance(value, str) else value
        return [spelled_as(known, own) for own in references] if isinstance(references, list) else references

    return check


YesOrNo = Annotated[list[str], BeforeValidator(_one_of(("yes", "no"))), Field(min_length=1, max_length=1)]
"""One reference, `yes` or `no`."""
TrueOrFalse = Annotated[list[str], BeforeValidator(_one_of(("true", "false"))), Field(min_length=1, max_length=1)]
"""One reference, `true` or `false`."""
Letter = Annotated[list[str], BeforeValidator(_one_of(ascii_uppercase)), Field(min_length=1)]
"""Letters of options, mostly one."""
FirstLetter = Annotated[list[str], BeforeValidator(_one_of(FIRST_LETTERS)), Field(min_length=1)]
"""Letters of up to five options."""


def _by_letter(options: object) -> object:
    return lettered(options) if isinstance(options, list) else options


Options = Annotated[dict[str, str], BeforeValidator(_by_letter)]
"""Options by letter; a list of their texts is lettered from A on."""


class ChoiceLine(Line):
    """`references` are letters of `options`, which are the row's own, in their order or by letter."""

    options: Annotated[Options, Field(min_length=2)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            spelled = [spelled_as(self.options, reference) for reference in self.references] if self.options else None
        except ValueError as error:
            raise ValueError(f"references: {error}") from None
        return self if spelled is None else self.model_copy(update={"references": spelled})
