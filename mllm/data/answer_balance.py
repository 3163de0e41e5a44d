"""Answers by the form of their question: what a guesser would get right, and draws that leave it less.

A question's form is its first two words, such as "is there" or "what colour". Only short answers belong to one: a form whose
answers are mostly yes teaches to say yes.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mllm.conversation.schema import Message

FORM_WORDS = 2
SHORT_WORDS = 3
MOST_REPEATS = 3
"""How many times as often as by its own number an answer's samples are visited at most."""

Cell = tuple[Sequence[int], int]
"""Numbers of samples, and how many visits an epoch has for them."""


def question_form(question: str) -> str:
    """The first two words of a question's first line that has any, small and without marks."""
    line = next((line for line in question.split("\n") if re.search(r"\w", line)), "")
    return " ".join(re.findall(r"[\w']+", line.lower())[:FORM_WORDS])


def short_answer(answer: str) -> str | None:
    """An answer of up to three words, small and without the full stop at its end; None for a longer or an empty one."""
    words = answer.split()
    return " ".join(words).lower().rstrip(".") if 0 < len(words) <= SHORT_WORDS else None


def answer_key(messages: Sequence[Message]) -> tuple[str, str] | None:
    """(form, answer) of a conversation of one question and a short answer; None for any other."""
    asked = [message.text for message in messages if message.role == "user"]
    answers = [message.text for message in messages if message.role == "assistant"]
    answer = short_answer(answers[0]) if len(asked) == len(answers) == 1 else None
    return None if answer is None else (question_form(asked[0]), answer)


def guessed_share(forms: Mapping[str, Counter[str]]) -> float:
    """The share of answers that are right of whoever gives each form's commonest; 0 without any."""
    total = sum(sum(counts.values()) for counts in forms.values())
    return sum(max(counts.values()) for counts in forms.values()) / total if total else 0.0


def balanced_cells(keys: Iterable[tuple[str, str] | None], count: int) -> list[Cell]:
    """Samples in cells of like form and answer, with the visits of each; together they are `count`.

    A form keeps its share of the visits. Within it each answer gets as many as any other, but none more than MOST_REPEATS
    times what its own number would give it: what is left goes to the commoner ones. What has no key is a cell of its own.
    """
    forms: dict[str | None, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    size = 0
    for number, key in enumerate(keys):
        form, answer = key or (None, "")
        forms[form][answer].append(number)
        size += 1
    by_form = list(forms.values())
    visits = _shared(count, [sum(map(len, answers.values())) for answers in by_form])
    cells: list[Cell] = []
    for answers, quota in zip(by_form, visits, strict=True):
        members = sorted(answers.values(), key=len)
        for place, own in enumerate(members):
            left = len(members) - place
            even = quota // left
            given = even if left == 1 else min(even, MOST_REPEATS * len(own) * count // size)
            cells.append((own, given))
            quota -= given
    return cells


def drawn(cells: Iterable[Cell], rng: random.Random) -> list[int]:
    """The numbers of the samples that an epoch visits: all of a cell as often as goes, the rest drawn without replacement."""
    chosen: list[int] = []
    for members, visits in cells:
        whole, rest = divmod(visits, len(members))
        chosen += [*members] * whole + rng.sample(members, rest)
    return chosen


def _shared(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` in whole numbers by the shares of `sizes`; the rests go to the largest remainders, the first of equals."""
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda n: (-(count * sizes[n] % total), n))
    for number in order[: count - sum(shares)]:
        shares[number] += 1
    return shares
