"""Callbacks of training that generate: answers to a few questions, to watch a model learn; those of benchmarks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mllm.conversation.schema import Sample
from mllm.errors import UserError
from mllm.finetune.benchmark_scores import BenchmarkScores
from mllm.finetune.in_step import forget_later_lines, is_partitioned, ranks_in_step
from mllm.finetune.settings import SampleAnswerSettings
from mllm.inference.generate import Request, generate_batch
from mllm.training.callback import Callback, RunContext

BATCH = 8


def generating_callbacks(context: RunContext) -> Sequence[Callback]:
    """Those that the run's settings ask for."""
    samples, benchmarks = context.settings.samples, context.settings.benchmarks
    callbacks: list[Callback] = [SampleAnswers(context, samples)] if samples is not None else []
    return [*callbacks, BenchmarkScores(context, benchmarks)] if benchmarks is not None else callbacks


class SampleAnswers(Callback):
    """Greedy answers to a few questions, as lines of `samples.jsonl` and as a text for the trackers (`samples`).

    Rank 0 generates; under ZeRO-3, where it takes all ranks to compute, all do, and rank 0 writes.
    """

    def __init__(self, context: RunContext, settings: SampleAnswerSettings) -> None:
        self._context, self._settings = context, settings
        self._path = context.run_dir / "samples.jsonl"
        self._samples = read_questions(settings)
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps
        if self._context.engine.rank == 0:
            forget_later_lines(self._path, step)

    def measure(self, step: int) -> Mapping[str, float | str]:
        engine = self._context.engine
        if step % self._settings.every_steps and step != self._total:
            return {}
        answers = self._answer() if engine.rank == 0 or is_partitioned(engine.module) else []
        engine.barrier()
        if engine.rank != 0:
            return {}
        records = [
            {
                "step": step,
                "id": sample.id,
                "question": request.messages[-1].text,
                "answer": answer,
                "expected": expected,
            }
            for (sample, request, expected), answer in zip(self._samples, answers, strict=True)
        ]
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return {"samples": as_markdown(records)}

    def _answer(self) -> list[str]:
        model, engine = self._context.model, self._context.engine
        requests = [request for _, request, _ in self._samples]
        try:
            with engine.autocast(), ranks_in_step(model):
                return generate_batch(model, self._context.processor, requests, self._settings.max_new_tokens, BATCH)
        finally:
            model.train()


def read_questions(settings: SampleAnswerSettings) -> list[tuple[Sample, Request, str | None]]:
    """(sample, what is asked, the expected answer) of the file's first samples. Raises UserError naming file and line."""
    path = Path(settings.file)
    if not path.is_file():
        raise UserError(f"samples.file {path} does not exist")
    questions: list[tuple[Sample, Request, str | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if len(questions) == settings.count:
            break
        if not line.strip():
            continue
        try:
            sample = Sample.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise UserError(f"samples.file {path}, line {number}: {place}: {problem['msg']}") from None
        is_answered = sample.messages[-1].role == "assistant"
        asked = sample.messages[:-1] if is_answered else sample.messages
        request = Request(tuple(asked), tuple(Path(settings.image_root) / image for image in sample.images))
        request.check()
        questions.append((sample, request, sample.messages[-1].text if is_answered else None))
    if not questions:
        raise UserError(f"samples.file {path} holds no sample")
    return questions


def as_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A table of questions, answers and what was expected."""
    rows = [[str(record[name] or "") for name in ("question", "answer", "expected")] for record in records]
    cells = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(["| question | answer | expected |", "| --- | --- | --- |", *cells])
