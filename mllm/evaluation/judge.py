"""Metrics that may have a model behind an endpoint judge answers; what it says is kept as it comes."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import model_validator
from typing_extensions import Self

from mllm.clients.openai import PREFIX
from mllm.errors import UserError
from mllm.evaluation.metric import Metric

CONCURRENCY = 8
MAX_NEW_TOKENS = 1024


class JudgedMetric(Metric):
    """A metric with a judge, or without one where `judge`, which is `openai:NAME`, is empty.

    judge_url: where it is. judge_prompt: a file of the words that it is asked with, `{}` for each thing that they hold, in
    place of ours. judge_log: a directory where what it said is kept; none is kept where it is empty.
    """

    judge: str = ""
    judge_url: str = ""
    judge_prompt: str = ""
    judge_log: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.judge and not (self.judge.startswith(PREFIX) and self.judge_url):
            raise ValueError(
                f"a judge is {PREFIX}NAME with its address (here judge {self.judge!r}, url {self.judge_url!r})"
            )
        return self

    def prompts(self, ours: str, holds: Sequence[Sequence[str]]) -> list[str]:
        """The words of each question to the judge. Raises UserError for a file that holds another number of things."""
        words = ours
        if self.judge_prompt:
            path = Path(self.judge_prompt)
            if not path.is_file():
                raise UserError(f"{path} does not exist; --judge-prompt is a file with the words for the judge")
            words = path.read_text(encoding="utf-8")
        pieces = words.split("{}")
        count = len(holds[0])
        if len(pieces) != count + 1:
            raise UserError(
                f"{self.judge_prompt}: the words for the judge hold {len(pieces) - 1} {{}}; expected {count}"
            )
        return ["".join(a + b for a, b in zip(pieces, (*own, ""), strict=True)) for own in holds]

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """What the judge says to each. Raises UserError where it can't be reached; what it said before then is kept."""
        # A file is scored without a judge, and benchmarks are listed, without what answers are asked with.
        from mllm.evaluation.asking import AnswerLog, Question, answer_all
        from mllm.evaluation.subjects.endpoint import Endpoint

        subject = Endpoint(self.judge.removeprefix(PREFIX), self.judge_url, CONCURRENCY)
        questions = [Question(prompt, (), MAX_NEW_TOKENS) for prompt in prompts]
        with TemporaryDirectory() as passing:
            log = AnswerLog(Path(self.judge_log or passing), 0, subject.identity, str)
            try:
                replies = answer_all(questions, subject, log)
            finally:
                log.close()
        return [replies[question].text for question in questions]
