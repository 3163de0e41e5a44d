"""Answers that name what the facts don't: listed objects, and places of none of the boxes."""

import re

from mllm.synthesis.filters.base import Candidate
from mllm.synthesis.grounding import PLACED
from mllm.synthesis.naming import NEGATION, Objects, absent_objects, mentions, sentences
from mllm.synthesis.prompts import fact_lines

BOX = re.compile(r"\[([^\[\]]*)\]")


class UnknownObject:
    """Only for a model that didn't see the image: there, what isn't in the facts is made up.

    A sentence that negates may name anything; of `absent`, the object that was to be asked about too.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def __call__(self, candidate: Candidate) -> str | None:
        request = candidate.request
        if request.kind in PLACED and (place := self._unknown_place(candidate)) is not None:
            return place
        if request.kind == "grounding":
            return None
        if request.language != "en" or request.kind == "reasoning":
            # Elsewhere the list of names doesn't apply; reasoning rightly speaks of what isn't shown.
            return None
        unknown = absent_objects(request.prompt.context, self._objects)
        for _, answer in candidate.turns:
            for sentence in sentences(answer.lower()):
                if NEGATION.search(sentence):
                    continue
                named = next((name for name in unknown if mentions(sentence, name)), None)
                if named is not None:
                    return f"speaks of a {named}"
        return None

    def _unknown_place(self, candidate: Candidate) -> str | None:
        given = {_normal(found) for found in BOX.findall(fact_lines(candidate.request.prompt.context))}
        for found in BOX.findall("\n".join(text for turn in candidate.turns for text in turn)):
            if _normal(found) not in given:
                return f"gives the place [{found}]"
        return None


def _normal(box: str) -> str:
    return re.sub(r"\s", "", box)
