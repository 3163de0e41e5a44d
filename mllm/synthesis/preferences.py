"""Requests of kind `preference`, and what their answers become: the two answers of a pair.

A pair is made in one of three forms. A *swap*: whoever writes is told a sort of mistake, and gives a right answer and the
same with that mistake. A *repair*: the facts come with one answer of a model, which is corrected. A *critic*: they come with
several, which are scored from 1 to 10, and the best and the worst are taken.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property

from mllm.conversation.pair import Scores
from mllm.synthesis.context import Context
from mllm.synthesis.naming import NEGATION, Objects, absent_objects, mentions, present_objects, sentences
from mllm.synthesis.parsing import Turns, UnparsableError
from mllm.synthesis.swaps import Scene, sorts_of

KIND = "preference"
REPAIR, CRITIC = "repair", "critic"
# The folder of prompts of each form.
FOLDERS = {"": KIND, REPAIR: f"{KIND}_{REPAIR}", CRITIC: f"{KIND}_{CRITIC}"}
MOST_ABSENT = 5  # objects that a wrong answer may name
_SCORE = re.compile(r"\b(10|[1-9])\b")


@dataclass(frozen=True)
class Wanted:
    """What a request asks for: the sort of the mistake (or the form), objects that are there, and objects that aren't."""

    sort: str
    present: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The folder of prompts."""
        return FOLDERS.get(self.sort, KIND)

    def lines(self, context: Context) -> str:
        """What follows the facts in the request."""
        if self.sort == REPAIR:
            return f"\nQuestion: {context.question}\nAnswer to correct: {_line(context.answers[0])}"
        if self.sort == CRITIC:
            answers = (f"Answer {number}: {_line(answer)}" for number, answer in enumerate(context.answers, 1))
            return "\n".join(["", f"Question: {context.question}", *answers])
        missing = f"\nNot in the image: {', '.join(self.absent)}" if self.sort == "object" else ""
        return f"\nMistake: {self.sort}{missing}"


def _line(answer: str) -> str:
    return " ".join(answer.split())


class Options:
    """What can be asked about an image, found out when it is first wanted.

    by_template: whether templates write, which know mistakes of more sorts, and need facts for each.
    """

    def __init__(self, context: Context, objects: Objects, by_template: bool) -> None:
        self.context, self._objects, self._by_template = context, objects, by_template

    @cached_property
    def present(self) -> tuple[str, ...]:
        """Objects that are certainly there."""
        return tuple(present_objects(self.context, self._objects))

    @cached_property
    def absent(self) -> tuple[str, ...]:
        """Listed objects that no fact speaks of."""
        return tuple(absent_objects(self.context, self._objects))

    @cached_property
    def sorts(self) -> list[str]:
        """Sorts of mistakes, or the form that the answers of a model ask for."""
        context = self.context
        if self._by_template:
            return sorts_of(Scene(context, self.present, self.absent[:1]))
        if context.answers:
            return [CRITIC if len(context.answers) > 1 else REPAIR]
        has = {
            "object": context.captions or context.boxes,
            "attribute": context.captions,
            "count": context.boxes,
            "relation": len(context.boxes) > 1,
            "text": context.ocr,
        }
        return [sort for sort, facts in has.items() if facts]

    def draw(self, rng: random.Random) -> Wanted:
        """Any of the sorts, each as likely, and some of the absent objects."""
        absent = tuple(rng.sample(self.absent, min(MOST_ABSENT, len(self.absent))))
        return Wanted(rng.choice(self.sorts), self.present, absent)


@dataclass(frozen=True)
class Paired:
    """The question with the chosen answer, the rejected one, and what verifiers gave both."""

    turns: Turns
    rejected: str
    scores: Scores
    margin: float | None = None


def paired(turns: Turns, sort: str, context: Context, objects: Objects, by_template: bool) -> Paired:
    """The pair that an answer gives. Raises UnparsableError for one in another form than asked."""
    if sort == CRITIC:
        return _judged(turns, context, objects)
    if sort == REPAIR:
        if len(turns) != 1:
            raise UnparsableError(f"expected the corrected answer in one turn, found {len(turns)} turns")
        chosen, rejected = turns[0][1], context.answers[0]
        question = context.question
    else:
        if len(turns) != 2:
            raise UnparsableError(f"expected a right and a wrong answer in two turns, found {len(turns)}")
        (question, chosen), (_, rejected) = turns
    if by_template:
        # The chosen answer is right as a whole: what isn't one of its sentences is the mistake.
        right, told = set(sentences(chosen)), sentences(rejected)
        share = sum(sentence in right for sentence in told) / max(1, len(told))
        scores = Scores(chosen={"facts": 1.0}, rejected={"facts": share})
    else:
        scores = Scores(
            chosen={"objects": named_share(chosen, context, objects)},
            rejected={"objects": named_share(rejected, context, objects)},
        )
    return Paired([(question, chosen)], rejected, scores)


def _judged(turns: Turns, context: Context, objects: Objects) -> Paired:
    """Of several answers the best and the worst; of those with the same score, the two of the likest length."""
    answers = context.answers
    given = [_SCORE.search(said) for _, said in turns]
    if len(turns) != len(answers) or not all(given):
        raise UnparsableError(f"expected a score from 1 to 10 for each of {len(answers)} answers")
    scores = [int(found[1]) for found in given if found]
    best, worst = ([n for n, score in enumerate(scores) if score == pick(scores)] for pick in (max, min))
    chosen, rejected = min(
        ((one, other) for one in best for other in worst), key=lambda pair: length_ratio(*(answers[n] for n in pair))
    )
    measured = [
        {"critic": float(scores[n]), "objects": named_share(answers[n], context, objects)} for n in (chosen, rejected)
    ]
    margin = float(scores[chosen] - scores[rejected])
    return Paired(
        [(context.question, answers[chosen])],
        answers[rejected],
        Scores(chosen=measured[0], rejected=measured[1]),
        margin,
    )


def length_ratio(one: str, other: str) -> float:
    """How many times as many words the longer of two texts has; 1 or more."""
    words = sorted(max(1, len(text.split())) for text in (one, other))
    return words[1] / words[0]


def named_share(text: str, context: Context, objects: Objects) -> float:
    """Of the listed objects that an answer says are there, the share that the facts name; 1 where it names none."""
    absent = set(absent_objects(context, objects))
    affirmed = " ".join(part for part in sentences(text.lower()) if not NEGATION.search(part))
    named = [name for name in objects if mentions(affirmed, name)]
    return 1.0 - sum(name in absent for name in named) / len(named) if named else 1.0
