"""Filters that look at the words alone: empty turns, leaks of the source, lengths, unsafe and personal content."""

import re
from collections.abc import Mapping

from mllm.synthesis.filters.base import Candidate
from mllm.synthesis.grounding import PLACED
from mllm.synthesis.settings import Kind

LEAKS = re.compile(
    r"\b(captions?|bounding[ -]box(es)?|coordinates?|alt(ernative)? text|"
    r"(the|these|given|provided|listed|above) (facts|annotations|metadata)|"
    r"(according to|based on|as (stated|mentioned|described) in|from) the (description|information|text|details))\b",
    re.IGNORECASE,
)
NUMBERED_PLACES = re.compile(r"[\[(]\s*[01]?\.\d+\s*,\s*[01]?\.\d+")
# Fewest and most words of one answer.
ANSWER_WORDS = {
    "conversation": (1, 200),
    "detail": (15, 400),
    "reasoning": (25, 500),
    "short_vqa": (1, 6),
    "ocr": (1, 300),
    "grounding": (1, 80),
    "spatial": (1, 60),
    "grounded_caption": (8, 400),
    "region_text": (1, 40),
    "absent": (1, 80),
    "preference": (1, 400),
}
# Scripts that put no blanks between words: about so many characters stand for one.
UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]")
UNSPACED_CHARACTERS_PER_WORD = 2
PERSONAL = {
    "an e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]*\w\b"),
    "a phone number": re.compile(r"(?<![\d.,])(\+\d{1,3}[ /-]?|\(?0)(?:\d[ ()/-]{0,2}){7,12}\d(?![\d.,]\d)"),
    "a US phone number": re.compile(r"(?<!\d)(\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?!\d)"),
    "a US social security number": re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
    "a bank account": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b"),
    "an IP address": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"),
}
CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,15}\d(?!\d)")
UNSAFE = re.compile(
    r"\b(porn\w*|sexually explicit|child abuse|(kill|hang|cut) (yourself|myself)|commit suicide|"
    r"(make|build|buil[dt]ing|making) (a |an )?(pipe )?(bomb|explosive|nerve agent|bioweapon)s?|"
    r"(subhuman|vermin) (race|people)|gas the)\b",
    re.IGNORECASE,
)


def empty_turn(candidate: Candidate) -> str | None:
    for question, answer in candidate.turns:
        if not question or not answer:
            return "a question without words" if not question else f"no answer to {question!r}"
    return None if all(candidate.answers) else "no rejected answer"


def source_leak(candidate: Candidate) -> str | None:
    """Words or numbers that only somebody who has the facts, and not the image, would write."""
    kind = candidate.request.kind
    found = LEAKS.search(candidate.text) if kind != "ocr" else None
    if found is None and kind not in PLACED:
        found = NUMBERED_PLACES.search(candidate.text)
    return f"says {found[0]!r}" if found else None


def word_count(text: str) -> int:
    unspaced = len(UNSPACED.findall(text))
    return len(UNSPACED.sub(" ", text).split()) + (unspaced + 1) // UNSPACED_CHARACTERS_PER_WORD


class Length:
    """Refuses answers of fewer or more words than their kind has; it is two filters, `too_short` and `too_long`."""

    def __init__(self, words: Mapping[Kind, tuple[int, int]]) -> None:
        self._words = dict(ANSWER_WORDS)
        for kind, bounds in words.items():
            self._words[kind] = bounds

    def too_short(self, candidate: Candidate) -> str | None:
        fewest = self._words[candidate.request.kind][0]
        least = min(map(word_count, candidate.answers))
        return f"an answer of {least} words, fewer than {fewest}" if least < fewest else None

    def too_long(self, candidate: Candidate) -> str | None:
        most = self._words[candidate.request.kind][1]
        longest = max(map(word_count, candidate.answers))
        return f"an answer of {longest} words, more than {most}" if longest > most else None


def personal_data(candidate: Candidate) -> str | None:
    for name, pattern in PERSONAL.items():
        if pattern.search(candidate.text):
            return f"holds {name}"
    numbers = (re.sub(r"\D", "", found[0]) for found in CARD.finditer(candidate.text))
    return "holds a card number" if any(is_luhn(number) for number in numbers) else None


def is_luhn(digits: str) -> bool:
    """Whether the check digit of a card number fits (ISO/IEC 7812-1)."""
    doubled = [int(d) * (2 if index % 2 else 1) for index, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def unsafe(candidate: Candidate) -> str | None:
    found = UNSAFE.search(candidate.text)
    return f"says {found[0]!r}" if found else None
