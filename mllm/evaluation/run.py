"""The run behind `mllm eval` and `mllm.evaluate`: plan, ask, score, write."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from mllm.checkpoint.load import AUTO
from mllm.errors import UserError
from mllm.evaluation.asking import AnswerLog, Subject, answer_all
from mllm.evaluation.conditions import CONDITIONS
from mllm.evaluation.confidences import calibration_of, with_confidences
from mllm.evaluation.injection import Injection
from mllm.evaluation.medium import source_hash
from mllm.evaluation.plan import Setup, questions_of_plan
from mllm.evaluation.ranks import launched_ranks
from mllm.evaluation.report import TrainingRun
from mllm.evaluation.results import ASKED, check_output, write_results
from mllm.evaluation.scoring import Outcome, score_plan
from mllm.evaluation.subjects.local import LocalModel, load_local, open_directory
from mllm.inference.contrast import Contrast
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

Opened = tuple[Subject, str, list[TrainingRun]]


def evaluate(
    model: str | Path | tuple[VisionLanguageModel, Processor],
    benchmarks: str | Sequence[str],
    data: str | Path | None = None,
    *,
    output: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    conditions: Sequence[str] = CONDITIONS,
    on_missing: str = "error",
    choice_by: str = "generation",
    injection: Injection | None = None,
    contrast: Contrast | None = None,
    dtype: str = AUTO,
    device: str | None = None,
) -> Outcome:
    """Score a model on benchmarks, beside the same questions with the image withheld and swapped.

        outcome = mllm.evaluate("runs/demo/stage2", ["easyvqa", "own.jsonl:anls"], limit=200)
        print(outcome["easyvqa"].score, outcome["easyvqa"].low, outcome["easyvqa"].high)

    model: a directory or hub id (see `mllm.load`), or a model with its processor. benchmarks, data: as `mllm eval` takes
    them. output: the directory where results, answers and report are written; None writes nothing. `Setup` says what the
    rest means; dtype and device are of a model that is loaded here (device None: a GPU if there is one). Raises UserError
    for what can't be asked or scored, and for an output of a model that has no directory.
    """
    names = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
    directory = None if data is None else Path(data)
    written = injection or Injection()
    where = Path(output or "")
    setup = Setup(
        names, directory, where, limit, seed, on_missing, choice_by, tuple(conditions), written, contrast=contrast
    )
    if isinstance(model, tuple):
        if output is not None:
            raise UserError("results are written for a model that has a directory: save it, and give the directory")
        was_training = model[0].training
        try:
            return _ask_and_score(setup, LocalModel(*model, batch_size, {}))
        finally:
            model[0].train(was_training)
    if output is None:
        return _ask_and_score(setup, load_local(str(model), dtype, batch_size, device)[0])
    return evaluate_subject(setup, lambda: open_directory(str(model), dtype, batch_size, device))


def _ask_and_score(setup: Setup, subject: Subject) -> Outcome:
    plan = setup.plan()
    return score_plan(plan, answer_all(questions_of_plan(plan), subject), setup.seed, subject)


def evaluate_subject(setup: Setup, open_subject: Callable[[], Opened]) -> Outcome:
    """Ask a model and write `results.json`, `answers.jsonl`, `skipped.jsonl`, `report.md`, `report.html` to the output.

    open_subject: the model under test, its name, and the training behind it; called when the benchmarks are read.
    Answers are kept in `asked/` of the output directory as they come, and the same call goes on from there. Under a
    launcher the ranks share the questions, and rank 0 writes. Raises UserError for an unknown benchmark, missing files, and
    files in the output that would be replaced and that no evaluation wrote.
    """
    kept = setup.output / ASKED
    with launched_ranks() as ranks:
        ranks.first_on_0(lambda: check_output(setup.output))
        plan = ranks.first_on_0(setup.plan)
        questions = questions_of_plan(plan)
        subject, name, runs = open_subject()
        calibration = calibration_of(setup, subject, name)
        hash_of = cache(source_hash)
        log = AnswerLog(kept, ranks.rank, subject.identity, hash_of)
        try:
            replies = answer_all(questions, subject, log, ranks)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"the answers so far are kept in {kept}; the same command goes on from there"
            ) from None
        finally:
            log.close()
        if not any(reply.text for reply in replies.values()):
            raise UserError(f"{name} answered nothing to {len(replies)} question(s); {kept} has them")
        scored = score_plan(plan, replies, setup.seed, subject)
        outcome = with_confidences(scored, calibration, setup.min_confidence)
        if ranks.rank == 0:
            write_results(setup, name, subject, plan, outcome, runs, hash_of)
    return outcome
