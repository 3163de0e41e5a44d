"""Who says whether a picture is right: a rule, a multimodal LLM that is asked about it, or several of them together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.evaluation.metrics.exact_match import exact_match
from mllm.generation.judging.drawn import Drawn, Questions
from mllm.inference.generate import generate_batch
from mllm.inference.likelihood import score_answers
from mllm.inference.request import Request
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor
from mllm.rewards.attempt import Attempt
from mllm.rewards.rules import python_reward
from mllm.rewards.settings import PythonReward, title_of

Verdict = dict[str, float]
"""What a picture is worth, by what was looked at: numbers, 0 to 1 where it is right or wrong."""

SHOWS = 'Does this figure show "{}"? Please answer yes or no.'
YES, NO = ("yes", "Yes"), ("no", "No")
ANSWER_TOKENS = 16
JUDGED_AT_ONCE = 16


class Judge(Protocol):
    """Pictures in, a verdict on each."""

    def __call__(self, pictures: Sequence[Drawn]) -> list[Verdict]: ...


class Rule:
    """A function of the user's of (caption, `Attempt`), whose last image is the picture: a number, or numbers by name.

    The same functions serve as rewards of `mllm improve` and of `train/grpo.py`, where they give a number.
    """

    def __init__(self, function: str) -> None:
        """function: `module:function` or `path.py:function`. Raises UserError where there is none."""
        if ":" not in function:
            raise UserError(f"rule {function}: give it as path.py:function or module:function")
        settings = PythonReward(kind="python", function=function)
        self.title, self._function = title_of(settings), python_reward(settings)

    def __call__(self, pictures: Sequence[Drawn]) -> list[Verdict]:
        return [self._verdict(picture) for picture in pictures]

    def _verdict(self, picture: Drawn) -> Verdict:
        attempt = Attempt(
            str(picture.image), picture.caption, picture.caption, images=(str(picture.image),), fields=picture.made
        )
        try:
            given: Any = self._function(attempt)
        except Exception as error:  # whatever a user's function raises
            said = " ".join(str(error).split())
            raise UserError(f"rule {self.title} fails for {picture.image} ({type(error).__name__}: {said})") from None
        named = given if isinstance(given, Mapping) else {"": given}
        return {f"{self.title}/{name}" if name else self.title: self._number(v, picture) for name, v in named.items()}

    def _number(self, value: Any, picture: Drawn) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"rule {self.title} gives {value!r:.60} for {picture.image}, which is no finite number")
        return number


@dataclass(frozen=True)
class Asking:
    """A multimodal LLM that is asked the questions of each picture's caption.

    Its verdict: `asked`, the share of questions that it answers right, and the same by the questions' types. Raises UserError
    for a caption without questions.
    """

    model: VisionLanguageModel
    processor: Processor
    questions: Questions
    batch_size: int = 32

    def __call__(self, pictures: Sequence[Drawn]) -> list[Verdict]:
        unknown = next((p.caption for p in pictures if p.caption not in self.questions), None)
        if unknown is not None:
            raise UserError(
                f"caption {unknown!r} has no questions; add a line with this prompt to the file of questions"
            )
        asked = [(n, one) for n, picture in enumerate(pictures) for one in self.questions[picture.caption]]
        requests = [request_about(pictures[n], one.question) for n, one in asked]
        answers = generate_batch(self.model, self.processor, requests, ANSWER_TOKENS, self.batch_size)
        right: list[dict[str, list[float]]] = [{} for _ in pictures]
        for (n, one), answer in zip(asked, answers, strict=True):
            score = exact_match(answer, [one.answer])
            for name in {"asked", f"asked/{one.type}"} if one.type != "all" else {"asked"}:
                right[n].setdefault(name, []).append(score)
        return [{name: math.fsum(each) / len(each) for name, each in sorted(own.items())} for own in right]


@dataclass(frozen=True)
class Likelihood:
    """A multimodal LLM as VQAScore has it (Lin et al. 2024, arXiv:2404.01291): `vqa_score`, the probability of yes.

    It is that of yes among yes and no, in lower case and capitalized, to "Does this figure show …?".
    """

    model: VisionLanguageModel
    processor: Processor
    shows: str = SHOWS
    batch_size: int = 32

    def __call__(self, pictures: Sequence[Drawn]) -> list[Verdict]:
        words = (*YES, *NO)
        requests = [
            request_about(picture, self.shows.replace("{}", picture.caption)) for picture in pictures for _ in words
        ]
        told = score_answers(self.model, self.processor, requests, [*words] * len(pictures), self.batch_size)
        rows = [told[start : start + len(words)] for start in range(0, len(told), len(words))]
        return [{"vqa_score": _share_of_first(row, len(YES))} for row in rows]


def _share_of_first(logs: Sequence[float], count: int) -> float:
    highest = max(logs)
    shares = [math.exp(value - highest) for value in logs]
    return math.fsum(shares[:count]) / math.fsum(shares)


def request_about(picture: Drawn, words: str) -> Request:
    """What a model is asked with a picture and words."""
    return Request((Message(role="user", content=(ImagePart(), TextPart(text=words))),), (str(picture.image),))


def together(
    judges: Sequence[Judge], on_judged: Callable[[int, int], None] = lambda done, count: None
) -> Callable[[Sequence[Drawn]], list[Verdict]]:
    """All the judges' verdicts on each picture, as one. on_judged(done, count): called after every few pictures."""

    def judge(pictures: Sequence[Drawn]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for start in range(0, len(pictures), JUDGED_AT_ONCE):
            some = pictures[start : start + JUDGED_AT_ONCE]
            columns = [one(some) for one in judges]
            verdicts += [dict(item for column in columns for item in column[n].items()) for n in range(len(some))]
            on_judged(len(verdicts), len(pictures))
        return verdicts

    return judge


def is_right(verdict: Verdict, least: Mapping[str, float]) -> bool:
    """Whether a verdict reaches every threshold. Raises UserError for one on something that wasn't judged."""
    unknown = next((name for name in least if name not in verdict), None)
    if unknown is not None:
        raise UserError(f"threshold on {unknown}, which nobody judges; what is: {', '.join(verdict) or 'nothing'}")
    return all(verdict[name] >= value for name, value in least.items())
