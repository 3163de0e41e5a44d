"""The run behind `mllm eval` and `mllm.evaluate`: plan, ask, score, and files that say how the scores were made."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

import mllm
from mllm.checkpoint.load import AUTO
from mllm.console import report_console
from mllm.errors import UserError
from mllm.evaluation.asking import AnswerLog, Subject, answer_all
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.controls import CONDITIONS
from mllm.evaluation.plan import Chosen, plan_run, questions_of_plan
from mllm.evaluation.ranks import launched_ranks
from mllm.evaluation.report import TrainingRun, as_markdown, training_runs, write_report
from mllm.evaluation.scoring import Outcome, Score, as_records, score_plan
from mllm.evaluation.subjects.local import LocalModel, load_local
from mllm.files import write_json_atomically, write_text_atomically
from mllm.media.decode import image_bytes
from mllm.model.multimodal import MultimodalLM
from mllm.outputs import check_files
from mllm.processor import Processor

logger = logging.getLogger(__name__)

BY = "mllm eval"
ASKED = "asked"
WRITTEN = ("answers.jsonl", "skipped.jsonl", "results.json", "report.md", "report.html")
PACKAGES = ("torch", "transformers", "tokenizers", "pillow")


@dataclass(frozen=True)
class Setup:
    """What is asked, and where results go.

    data: where the benchmarks' files lie (None = where each says). limit: questions per benchmark (None = the benchmark's
    own default). on_missing: `error`, or `skip` for questions whose image isn't there. choice_by: `generation`, or
    `likelihood` where a question has options. conditions: see `questions_of`.
    """

    benchmarks: Sequence[str]
    data: Path | None
    output: Path
    limit: int | None = None
    seed: int = 0
    on_missing: str = "error"
    choice_by: str = "generation"
    conditions: Sequence[str] = CONDITIONS

    def plan(self) -> list[Chosen]:
        by_likelihood = self.choice_by == "likelihood"
        return plan_run(
            self.benchmarks, self.data, self.limit, self.seed, self.on_missing, by_likelihood, self.conditions
        )


def evaluate(
    model: str | Path | tuple[MultimodalLM, Processor],
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
    setup = Setup(names, directory, Path(output or ""), limit, seed, on_missing, choice_by, tuple(conditions))
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
    return score_plan(plan, answer_all(questions_of_plan(plan), subject), setup.seed)


Opened = tuple[Subject, str, list[TrainingRun]]


def open_directory(model: str, dtype: str, batch_size: int, device: str | None = None) -> Opened:
    """The model under test of a directory or hub id (see `mllm.load`), where it lies, and the training behind it."""
    subject, path = load_local(model, dtype, batch_size, device)
    return subject, str(path), training_runs(path)


def evaluate_subject(setup: Setup, open_subject: Callable[[], Opened]) -> Outcome:
    """Ask a model and write `results.json`, `answers.jsonl`, `skipped.jsonl`, `report.md`, `report.html` to the output.

    open_subject: the model under test, its name, and the training behind it; called when the benchmarks are read.
    Answers are kept in `asked/` of the output directory as they come, and the same call goes on from there. Under a
    launcher the ranks share the questions, and rank 0 writes. Raises UserError for an unknown benchmark, missing files, and
    files in the output that would be replaced and that no evaluation wrote.
    """
    with launched_ranks() as ranks:
        plan = ranks.first_on_0(lambda: _checked_plan(setup))
        subject, name, runs = open_subject()
        hash_of = cache(_file_hash)
        log = AnswerLog(setup.output / ASKED, ranks.rank, subject.identity, hash_of)
        try:
            replies = answer_all(questions_of_plan(plan), subject, log, ranks)
        except KeyboardInterrupt:
            known = f"the answers so far are kept in {setup.output / ASKED}"
            raise KeyboardInterrupt(f"{known}; the same command goes on from there") from None
        finally:
            log.close()
        if not any(reply.text for reply in replies.values()):
            raise UserError(f"{name} answered nothing to {len(replies)} question(s); {setup.output / ASKED} has them")
        outcome = score_plan(plan, replies, setup.seed)
        if ranks.rank == 0:
            provenance = {"model": name} | _provenance(plan, subject, setup, hash_of) | {"official": outcome.official}
            provenance["empty_answers"] = {chosen.name: outcome.empty_answers(chosen.name) for chosen in plan}
            _write(setup.output, provenance, plan, outcome, runs)
        ranks.gather(None)  # no rank leaves before the files are there
    return outcome


def _checked_plan(setup: Setup) -> list[Chosen]:
    check_files(setup.output, WRITTEN, BY)
    check_files(setup.output / ASKED, (), BY)
    return setup.plan()


def _file_hash(path: str) -> str:
    return hashlib.sha256(image_bytes(path)).hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _provenance(
    plan: Sequence[Chosen], subject: Subject, setup: Setup, hash_of: Callable[[str], str]
) -> dict[str, Any]:
    """What a score depends on: weights, questions, images, prompts, versions; and what was left out."""
    questions = {c.name: [(i.id, i.question, i.references) for i in c.items] for c in plan}
    images = {c.name: [None if i.image is None else hash_of(str(i.image)) for i in c.items] for c in plan}
    prompts = {c.name: [c.benchmark.prompt(item) for item in c.items] for c in plan}
    return {
        **subject.identity,
        "questions_sha256": _hash(questions),
        "data_sha256": {name: _hash([questions[name], images[name]]) for name in questions},
        "prompt_sha256": {name: _hash([subject.identity.get("prompt_format"), own]) for name, own in prompts.items()},
        "decoding": {
            # An endpoint says its temperature where that isn't 0.
            "do_sample": subject.identity.get("temperature", 0) != 0,
            "choice_by": setup.choice_by,
            "max_new_tokens": {c.name: c.benchmark.max_new_tokens for c in plan},
        },
        "seed": setup.seed,
        "versions": {"mllm": mllm.__version__, **{package: version(package) for package in PACKAGES}},
        "is_partial": any(chosen.skipped for chosen in plan),
        "coverage": {c.name: {"in_files": c.in_files, "asked": len(c.items), "skipped": len(c.skipped)} for c in plan},
    }


def partial_note(plan: Sequence[Chosen]) -> str | None:
    """What to say beside scores from which questions are missing; None where none is."""
    lost = [f"{c.name}: {len(c.skipped)} of {len(c.skipped) + len(c.items)}" for c in plan if c.skipped]
    return f"PARTIAL: questions were skipped ({'; '.join(lost)}); skipped.jsonl says why" if lost else None


def remarks(chosen: Chosen, official: Mapping[str, Mapping[str, Any]], empty_answers: int = 0) -> list[str]:
    """What a reader has to know of a benchmark's scores: that they are a sample's, how many answers are empty or couldn't be
    read, the official number, others' figures."""
    asked, said = len(chosen.items), []
    if asked < chosen.in_files:
        said.append(f"A sample: {asked} of {chosen.in_files} questions were asked.")
    if empty_answers:
        said.append(f"{empty_answers} of {asked} answers are empty.")
    if "model" in official:
        said.append(f"Official number ({chosen.benchmark.metric}): {official['model']['score']:.4g}.")
        said += [f"{note[:1].upper()}{note[1:]}." for note in official["model"].get("notes", ())]
    for figure in chosen.benchmark.card.published:
        note = f" ({figure.note})" if figure.note else ""
        said.append(f"Published: {figure.model} {figure.percent} %{note}. Source: {figure.source}.")
    return said


def _write(
    output: Path, provenance: dict[str, Any], plan: Sequence[Chosen], outcome: Outcome, runs: list[TrainingRun]
) -> None:
    answers, scores = outcome.answers, outcome.scores
    lines = [json.dumps({"benchmark": n} | r, ensure_ascii=False) for n, e in answers.items() for r in as_records(e)]
    write_text_atomically(output / "answers.jsonl", "\n".join(lines) + "\n", BY)
    skipped = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for chosen in plan for entry in chosen.skipped]
    write_text_atomically(output / "skipped.jsonl", "".join(skipped), BY)
    write_json_atomically(
        output / "results.json",
        provenance | {"scores": {name: as_records(entries) for name, entries in scores.items()}},
        BY,
    )
    note = partial_note(plan)
    empty = provenance["empty_answers"]
    said = {chosen.name: remarks(chosen, outcome.official[chosen.name], empty[chosen.name]) for chosen in plan}
    title = f"Scores of {provenance['model']}"
    write_text_atomically(output / "report.md", as_markdown(title, scores, note, said), BY)
    write_report(output / "report.html", title, scores, answers, runs, note, said, by=BY)
    logger.info("wrote results.json, answers.jsonl, report.md and report.html to %s", output)
    if note is not None:
        logger.warning(note)


def print_scores(scores: dict[str, list[Score]]) -> None:
    """A table of percentages with their 95% intervals."""
    conditions = list(dict.fromkeys(entry.condition for entries in scores.values() for entry in entries))
    table = Table(title="mean score, % [95% interval]")
    for column in ("benchmark", "type", "questions", *conditions):
        table.add_column(column)
    for name, entries in scores.items():
        label = name + (" (less is better)" if metric_of(name).lower_is_better else "")
        for kind in dict.fromkeys(entry.type for entry in entries):
            cells = {
                e.condition: f"{100 * e.score:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
                for e in entries
                if e.type == kind
            }
            count = next(e.count for e in entries if e.type == kind)
            table.add_row(label, kind, str(count), *(cells.get(c, "") for c in conditions))
    report_console().print(table)
