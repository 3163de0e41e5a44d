"""Models under test that are computed here: ours, and LLaVA directories of transformers."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint.load import load, resolve_dtype
from mllm.checkpoint.ours import directory_hash, model_directory
from mllm.checkpoint.parts import local_directory
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT, Region
from mllm.errors import UserError
from mllm.evaluation.asking import OnReplies, Question, Reply
from mllm.evaluation.medium import Medium
from mllm.evaluation.report import TrainingRun, training_runs
from mllm.files import hash_files
from mllm.inference.answer import Answer
from mllm.inference.confidence import CALIBRATION
from mllm.inference.decoding import Decoding
from mllm.inference.generate import generate_answers
from mllm.inference.likelihood import score_answers
from mllm.inference.places import read_regions
from mllm.inference.request import prompt_of
from mllm.media.shuffled import ShuffledFrames
from mllm.model.interface import VisionLanguageModel
from mllm.outputs import LIST
from mllm.processor import Processor

# Bounds what is rendered and planned at once; some thousand questions share all the prefixes that they can.
CHUNK_QUESTIONS = 4096
PREPROCESSING = ("*.json", "*.jinja", "*.model", "*.txt")


class LocalModel:
    """Greedy answers in batches with shared prefixes, each with its log-probability; see `Subject`."""

    def __init__(
        self, model: VisionLanguageModel, processor: Processor, batch_size: int, identity: Mapping[str, Any]
    ) -> None:
        self.identity = identity
        self._model, self._processor, self._batch_size = model, processor, batch_size

    def answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        for chunk in _chunks(questions):
            processor = _ordering(self._processor, chunk[0].order_seed)
            if chunk[0].options:
                self._choose(chunk, processor, on_replies)
            else:
                self._generate(chunk, processor, on_replies)

    def places(self, text: str, media: Sequence[Medium]) -> Sequence[Region] | None:
        """The places that an answer names, read in the model's box format; see `Subject`."""
        request = Question("?", tuple(media), 1).request()
        return read_regions(text, prompt_of(request, self._processor).shown, self._processor)

    def _generate(self, questions: Sequence[Question], processor: Processor, on_replies: OnReplies) -> None:
        decodings = [Decoding(q.max_new_tokens, logprobs=True, contrast=q.contrast) for q in questions]
        requests = [question.request() for question in questions]

        def report(done: Mapping[int, Answer]) -> None:
            on_replies({questions[index]: _reply(answer) for index, answer in done.items()})

        generate_answers(self._model, processor, requests, decodings, self._batch_size, report)

    def _choose(self, questions: Sequence[Question], processor: Processor, on_replies: OnReplies) -> None:
        pairs = [(question, option) for question in questions for option in question.options]
        requests = {question: question.request() for question in questions}
        found: dict[Question, dict[str, float]] = {question: {} for question in questions}

        def report(done: Mapping[int, float]) -> None:
            touched = {}
            for index, logprob in done.items():
                question, option = pairs[index]
                found[question][option] = logprob
                touched[question] = found[question]
            on_replies({q: _likeliest(q, own) for q, own in touched.items() if len(own) == len(set(q.options))})

        asked = [requests[question] for question, _ in pairs]
        score_answers(self._model, processor, asked, [o for _, o in pairs], self._batch_size, report)


def _ordering(processor: Processor, order_seed: int | None) -> Processor:
    """The processor, or one like it that shows frames of videos in another order."""
    if order_seed is None:
        return processor
    other = copy(processor)
    other.planner = ShuffledFrames(processor.planner, order_seed)
    return other


def _reply(answer: Answer) -> Reply:
    return Reply(answer.text, _finite(sum(token.logprob for token in answer.logprobs)))


def _likeliest(question: Question, logprobs: Mapping[str, float]) -> Reply:
    """Return the most likely option, with what each has; ties go to the first."""
    each = {option: _finite(logprobs[option]) for option in question.options}
    best = max(question.options, key=lambda option: each[option])
    return Reply(best, each[best], tuple(each[option] for option in question.options))


def _finite(logprob: float) -> float:
    if not math.isfinite(logprob):
        raise UserError(
            f"the model gives an answer the log-probability {logprob}; its weights or this dtype are broken"
        )
    return min(0.0, logprob)


def _chunks(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Questions that can be computed together, those that show the same side by side."""
    by_media: dict[tuple[Medium, ...], list[Question]] = {}
    for question in questions:
        by_media.setdefault(question.media, []).append(question)
    kinds: dict[tuple[object, ...], list[Question]] = {}
    for own in by_media.values():
        for question in own:
            kind = (bool(question.options), question.max_new_tokens, question.order_seed, question.contrast)
            kinds.setdefault(kind, []).append(question)
    for chosen in kinds.values():
        for start in range(0, len(chosen), CHUNK_QUESTIONS):
            yield chosen[start : start + CHUNK_QUESTIONS]


def load_local(source: str, dtype: str, batch_size: int, device: str | None = None) -> tuple[LocalModel, Path]:
    """The model of `source` (see `mllm.load`) and the directory that it is in.

    device: such as `cpu` or `cuda:1`; None is this process's GPU if there is one.
    """
    path = model_directory(local_directory(source))
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    dtype = resolve_dtype(dtype, device)
    model, processor = load(path, dtype=dtype, device=device)
    identity = {
        "model_sha256": directory_hash(path),
        "preprocessing_sha256": _preprocessing_hash(path),
        "prompt_format": processor.format_name,
        "dtype": dtype,
    }
    if processor.box_format != DEFAULT_BOX_FORMAT:
        identity["box_format"] = processor.box_format
    return LocalModel(model, processor, batch_size, identity), path


def open_directory(
    model: str, dtype: str, batch_size: int, device: str | None = None
) -> tuple[LocalModel, str, list[TrainingRun]]:
    """The model under test of a directory or hub id (see `mllm.load`), where it lies, and the training behind it."""
    subject, path = load_local(model, dtype, batch_size, device)
    return subject, str(path), training_runs(path)


def _preprocessing_hash(path: Path) -> str:
    """SHA-256 of tokenizer, templates and image preprocessing: everything that answers depend on beside the weights."""
    found = {file for pattern in PREPROCESSING for file in path.glob(pattern)}
    return hash_files(sorted(file for file in found if file.name not in (CALIBRATION, LIST)))
