"""Every question of a run answered once, whatever was answered before, by all ranks together."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllm.evaluation.answer_log import AnswerLog
from mllm.evaluation.question import Question, Reply, Subject
from mllm.evaluation.ranks import ALONE, Ranks, deal

logger = logging.getLogger(__name__)


def answer_all(
    questions: Sequence[Question],
    subject: Subject,
    log: AnswerLog | None = None,
    ranks: Ranks = ALONE,
    shows_progress: bool = True,
) -> dict[Question, Reply]:
    """The reply to each of `questions`, on every rank. What `log` knows isn't asked; what is asked goes into it."""
    keys: dict[Question, Any] = {question: log.key(question) if log else question for question in questions}
    known: dict[Any, Reply] = {}
    for found in ranks.gather(log.known if log else {}):
        known |= found
    unanswered: dict[Any, Question] = {}
    for question, key in keys.items():
        if key not in known:
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
