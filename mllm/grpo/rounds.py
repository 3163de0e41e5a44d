"""A round: the prompts of a step are answered several times each, and every answer is given its reward."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mllm.errors import BadSampleError
from mllm.grpo.objective import is_flat
from mllm.grpo.served import ServedAnswers
from mllm.grpo.settings import GrpoSettings
from mllm.inference.answer import Answer
from mllm.inference.decoding import Decoding
from mllm.inference.sampling import seed_of
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor
from mllm.rewards.asked import Asked
from mllm.rewards.sampled import answers_to
from mllm.rewards.scoring import Rewards


@dataclass(frozen=True)
class Told:
    """An answer: its tokens with the one that ended it, its words, whether it reached the most tokens that it might have, and
    its reward (None: it has none) with those of its parts."""

    token_ids: tuple[int, ...]
    text: str
    is_cut: bool
    reward: float | None
    parts: dict[str, float | None]


@dataclass(frozen=True)
class Group:
    """The answers to the prompt of that number among those of its step, or why there are none; after `tries` samplings."""

    number: int
    answers: tuple[Told, ...] = ()
    tries: int = 1
    problem: str | None = None

    @property
    def rewards(self) -> list[float | None]:
        return [answer.reward for answer in self.answers]

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Group":
        told = [Told(**{**answer, "token_ids": tuple(answer["token_ids"])}) for answer in record["answers"]]
        return cls(**{**record, "answers": tuple(told)})


class Sampler:
    """Answers prompts with the weights as they are: a function of these, of the seed, the step, and each prompt alone."""

    def __init__(
        self, model: VisionLanguageModel, processor: Processor, rewards: Rewards, settings: GrpoSettings
    ) -> None:
        self._model, self._processor, self._rewards, self._settings = model, processor, rewards, settings
        self._served = (
            None if settings.rollouts is None else ServedAnswers(settings.rollouts, settings.sampling, processor)
        )

    def round(self, step: int, prompts: Sequence[tuple[int, Asked]]) -> list[Group]:
        """The groups of `prompts`, each with its number. Groups that teach nothing are answered anew, if that is wanted."""
        found: dict[int, Group] = {}
        waiting = list(prompts)
        for attempt in range(1 + self._settings.objective.resamples):
            fresh = {group.number: group for group in self._groups(step, attempt, waiting)}
            # A prompt whose answers stay alike keeps those of its first sampling.
            found |= {n: group for n, group in fresh.items() if n not in found or not is_flat(group.rewards)}
            waiting = [(n, asked) for n, asked in waiting if n in fresh and fresh[n].answers]
            waiting = [(n, asked) for n, asked in waiting if is_flat(fresh[n].rewards)]
            if not waiting:
                break
        return [found[number] for number, _ in prompts]

    def _groups(self, step: int, attempt: int, prompts: Sequence[tuple[int, Asked]]) -> list[Group]:
        sampling, seed = self._settings.sampling, self._settings.seed
        seeds = [
            [seed_of(seed, step, attempt, asked.sample_id, number) for number in range(sampling.answers)]
            for _, asked in prompts
        ]
        asked = [own for _, own in prompts]
        found = self._answers(asked, seeds)
        attempts = [
            own.attempt(answer.text, self._processor, self._rewards.reads_places)
            for own, answers in zip(asked, found, strict=True)
            if not isinstance(answers, BadSampleError)
            for answer in answers
        ]
        scored = iter(self._rewards(attempts))
        groups = []
        for (number, _), answers in zip(prompts, found, strict=True):
            if isinstance(answers, BadSampleError):
                groups.append(Group(number, tries=attempt + 1, problem=answers.reason))
                continue
            told = [(answer, next(scored)) for answer in answers]
            worth = tuple(
                Told(answer.token_ids, answer.text, answer.finish_reason == "length", s.total, s.parts)
                for answer, s in told
            )
            groups.append(Group(number, worth, attempt + 1))
        return groups

    def _answers(self, asked: Sequence[Asked], seeds: Sequence[Sequence[int]]) -> list[list[Answer] | BadSampleError]:
        if self._served is not None:
            return self._served(asked, seeds)
        sampling = self._settings.sampling
        decoding = Decoding(max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature)
        return answers_to(self._model, self._processor, asked, seeds, decoding, sampling.batch_size)


def bad_sample(group: Group, asked: Asked) -> BadSampleError | None:
    """Why a prompt has no answers."""
    return None if group.problem is None else BadSampleError(asked.sample_id, "image", group.problem)
