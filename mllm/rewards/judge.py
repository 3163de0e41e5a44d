"""A reward that a model gives: each answer is shown to a judge once, and its verdicts are kept on the disk."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.rewards.attempt import Attempt
from mllm.rewards.settings import JudgeReward
from mllm.synthesis.asking import ask_all
from mllm.synthesis.backends import build_backend
from mllm.synthesis.backends.base import Prompt
from mllm.synthesis.context import Context
from mllm.synthesis.journal import Journal
from mllm.synthesis.judging import SCHEMA, parse_verdict
from mllm.synthesis.prompts import prompt_key

HOW = 'Answer with JSON {"reason": "…", "score": 1-5}, or with a last line `Score: N`.'


class Judge:
    """Scores answers from 0 to 1. The same question, image and answer are never paid for twice: `verdicts` is a journal."""

    def __init__(self, settings: JudgeReward, verdicts: Path) -> None:
        """Raises UserError when a package, a key or a model is missing, or templates would judge."""
        self._settings, self._backend = settings, build_backend(settings.backend)
        if self._backend.kinds is not None:
            raise UserError("reward judge: templates can't judge; choose an endpoint or a model")
        self._journal = Journal(verdicts)
        # One loop for all batches: a client's connections belong to the loop that they were opened in.
        self._loop = asyncio.new_event_loop()

    def __call__(self, attempts: Sequence[Attempt]) -> list[Any]:
        """A number from 0 to 1 for each, or the exception that says why there is none.

        Raises UserError where the judge is down or its budget used up; the verdicts so far are kept.
        """
        prompts = [self._prompt(attempt) for attempt in attempts]
        distinct = {prompt.key: prompt for prompt in prompts}
        asked = self._loop.run_until_complete(ask_all(distinct.values(), self._backend, self._journal, "judging"))
        if asked.ended_by is not None:
            raise UserError(f"reward judge: {asked.ended_by}")
        return [self._verdict(prompt.key) for prompt in prompts]

    def _verdict(self, key: str) -> Any:
        text = self._journal.get(key)
        if text is None:
            return ValueError("the request failed")
        verdict = parse_verdict(text)
        return ValueError(f"no score in {' '.join(text.split())[:80]!r}") if verdict is None else (verdict[0] - 1) / 4

    def _prompt(self, attempt: Attempt) -> Prompt:
        right = f"\n\nA right answer: {attempt.references[0]}" if attempt.references else ""
        asked = f"Question: {attempt.question}{right}\n\nThe answer to judge: {attempt.answer}"
        messages = (
            {"role": "system", "content": f"{self._settings.instruction}\n{HOW}"},
            {"role": "user", "content": asked},
        )
        image = str(attempt.images[-1]) if attempt.images else ""
        key = prompt_key("reward", self._backend.identity, image, messages)
        return Prompt(key, "judge", messages, Context(attempt.id, "reward", image, image), 0, SCHEMA)

    def close(self) -> None:
        """Close the judge's connections and its journal."""
        self._loop.run_until_complete(self._backend.close())
        self._loop.close()
        self._journal.close()
