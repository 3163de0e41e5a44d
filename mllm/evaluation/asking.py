"""Asking a model under test: every question of a run once, whatever was answered before, by all ranks together.

Replies are on the disk as they come, so that a run that was killed goes on where it stood.
"""

import hashlib
import heapq
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllm.conversation.boxes import Region
from mllm.conversation.schema import Message, Part
from mllm.errors import UserError
from mllm.evaluation.medium import Medium, parts_of
from mllm.evaluation.ranks import ALONE, Ranks
from mllm.files import fsync_path
from mllm.inference.contrast import Contrast
from mllm.inference.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What an answer depends on beside the model. Equal questions are asked once.

    prompt: the user's words. media: images and videos, in order. max_new_tokens: the length of a greedy answer at most.
    options: if there are any, the answer is the likeliest of them. places: before which character of the prompt each
    medium stands; all stand before the words unless said. order_seed: a seed of the order in which frames of videos are
    shown; None: as they follow each other. contrast: with what the words of an answer are contrasted.
    """

    prompt: str
    media: tuple[Medium, ...]
    max_new_tokens: int
    options: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    order_seed: int | None = None
    contrast: Contrast | None = None

    @property
    def content(self) -> tuple[Part, ...]:
        """The parts of the user's turn."""
        return parts_of(self.prompt, self.media, self.places or (0,) * len(self.media))

    def request(self) -> Request:
        return Request((Message(role="user", content=self.content),), tuple(medium.source for medium in self.media))


@dataclass(frozen=True)
class Reply:
    """An answer, and its natural log-probability with its ending; None where the model doesn't tell.

    option_logprobs: of each option of the question, in their order, where the likeliest is the answer.
    """

    text: str
    logprob: float | None = None
    option_logprobs: tuple[float, ...] = ()


OnReplies = Callable[[Mapping[Question, Reply]], None]


class Subject(Protocol):
    """A model under test.

    identity: what tells its answers from those of others (weights, dtype, prompt format, …), as JSON; it goes to the
    results, and answers are kept under it.
    """

    identity: Mapping[str, Any]

    def answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        """Answer each question, handing out replies as they come. Raises UserError where one can't be asked."""
        ...

    def places(self, text: str, media: Sequence[Medium]) -> Sequence[Region] | None:
        """The places that an answer names, in shares of the image of `media`; None where the box format isn't known."""
        ...


class AnswerLog:
    """Replies under a key of all that determines them, one line of JSON each.

    Every rank appends to its own file of the directory, `{rank}.jsonl`, and reads all of them at its start. A line that
    was cut short at the end of a file is dropped. Raises UserError for any other line that isn't one.
    """

    def __init__(self, directory: Path, rank: int, identity: Mapping[str, Any], hash_of: Callable[[str], str]) -> None:
        """identity: of the model under test. hash_of: the content hash of an image or a video."""
        self._identity, self._hash_of = dict(identity), hash_of
        directory.mkdir(parents=True, exist_ok=True)
        own = directory / f"{rank}.jsonl"
        self.known: dict[str, Reply] = {}
        for file in sorted({*directory.glob("*.jsonl"), own}):
            replies, whole_bytes = _read(file)
            self.known |= replies
            if file == own and own.is_file():
                os.truncate(own, whole_bytes)
        self._file = open(own, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        fsync_path(directory)

    def key(self, question: Question) -> str:
        """SHA-256 of model, words, media, and how the answer is found."""
        what = [self._identity, question.prompt, self._shown(question), question.max_new_tokens, question.options]
        if question.order_seed is not None:
            what.append(question.order_seed)
        if question.contrast is not None:
            what.append(asdict(question.contrast))
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _shown(self, question: Question) -> Any:
        """What is shown and where; of one image before the words its hash alone, so that answers kept as such still count."""
        hashes = [self._hash_of(medium.source) for medium in question.media]
        if len(hashes) < 2 and not any(question.places) and not any(medium.is_video for medium in question.media):
            return next(iter(hashes), None)
        places = question.places or (0,) * len(hashes)
        return [[m.part.type, own, place] for m, own, place in zip(question.media, hashes, places, strict=True)]

    def append(self, replies: Mapping[Question, Reply]) -> None:
        """The replies are on the disk when this returns."""
        lines = []
        for question, reply in replies.items():
            key = self.key(question)
            self.known[key] = reply
            record: dict[str, Any] = {"key": key, "answer": reply.text, "logprob": reply.logprob}
            if reply.option_logprobs:
                record["option_logprobs"] = reply.option_logprobs
            lines.append(json.dumps(record) + "\n")
        rest = memoryview("".join(lines).encode())
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _read(file: Path) -> tuple[dict[str, Reply], int]:
    """Replies by key, and the length of the file without a torn end."""
    content = file.read_bytes() if file.is_file() else b""
    replies = {}
    end = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            record = json.loads(line)
            options = tuple(record.get("option_logprobs", ()))
            replies[record["key"]] = Reply(record["answer"], record["logprob"], options)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}, line {number} is no answer; remove the file to ask its questions again") from None
    return replies, end


def answer_all(
    questions: Sequence[Question],
    subject: Subject,
    log: AnswerLog | None = None,
    ranks: Ranks = ALONE,
    shows_progress: bool = True,
) -> dict[Question, Reply]:
    """The reply to each of `questions`, on every rank. What `log` knows isn't asked; what is asked goes into it.

    A choice among options that was kept without what each of them has is asked again.
    """
    keys: dict[Question, Any] = {question: log.key(question) if log else question for question in questions}
    known: dict[Any, Reply] = {}
    for found in ranks.gather(log.known if log else {}):
        known |= found
    unanswered: dict[Any, Question] = {}
    for question, key in keys.items():
        if key not in known or (question.options and not known[key].option_logprobs):
            unanswered.setdefault(key, question)
    if log and len(unanswered) < len(set(keys.values())):
        logger.info("%d question(s) are yet to be answered, of %d", len(unanswered), len(set(keys.values())))
    mine = deal(list(unanswered.values()), ranks.size)[ranks.rank]
    fresh: dict[Any, Reply] = {}
    with _progress(shows_progress and ranks.rank == 0) as progress:
        task = progress.add_task("questions" if ranks.size == 1 else "questions of rank 0", total=len(mine))

        def take(done: Mapping[Question, Reply]) -> None:
            if log:
                log.append(done)
            fresh.update({keys[question]: reply for question, reply in done.items()})
            progress.advance(task, len(done))

        if mine:
            subject.answer(mine, take)
    for found in ranks.gather(fresh):
        known |= found
    return {question: known[key] for question, key in keys.items()}


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not shown,
    )


def deal(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """A share for each of `size` ranks, of like numbers. All questions that show the same are one rank's."""
    by_media: dict[object, list[Question]] = {}
    for number, question in enumerate(questions):
        by_media.setdefault(question.media or number, []).append(question)
    shares: list[list[Question]] = [[] for _ in range(size)]
    loads = [(0, rank) for rank in range(size)]
    for own in sorted(by_media.values(), key=len, reverse=True):
        load, rank = heapq.heappop(loads)
        shares[rank] += own
        heapq.heappush(loads, (load + len(own) + 1, rank))  # an image costs about as much as a question
    return shares
