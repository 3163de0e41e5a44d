"""The run behind `eval/run.py`: benchmarks × conditions, a result file that says how it was made, and a table."""

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
from mllm.evaluation.answer_log import AnswerLog
from mllm.evaluation.asking import answer_all
from mllm.evaluation.benchmark import Benchmark, Item
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.official import OfficialBenchmark
from mllm.evaluation.plan import Chosen, plan_run
from mllm.evaluation.question import Question, Reply, Subject
from mllm.evaluation.ranks import launched_ranks
from mllm.evaluation.report import TrainingRun, as_markdown, training_runs, write_report
from mllm.evaluation.runner import CONDITIONS, Answer, Score, as_records, ask, ask_majority, summarize
from mllm.evaluation.subject import load_local
from mllm.files import write_json_atomically, write_text_atomically
from mllm.media.decode import image_bytes
from mllm.outputs import check_files

logger = logging.getLogger(__name__)

BY = "mllm eval"
ASKED = "asked"
WRITTEN = ("answers.jsonl", "skipped.jsonl", "results.json", "report.md", "report.html")
PACKAGES = ("torch", "transformers", "tokenizers", "pillow")


@dataclass(frozen=True)
class Outcome:
    """Answers, their scores and the official numbers (by condition), each by benchmark."""

    answers: dict[str, list[Answer]]
    scores: dict[str, list[Score]]
    official: dict[str, dict[str, dict[str, Any]]]

    def empty_answers(self, name: str) -> int:
        """How many of the model's own answers to a benchmark have no words."""
        return sum(answer.condition == "model" and not answer.answer for answer in self.answers[name])


@dataclass(frozen=True)
class Setup:
    """What is asked, and where results go.

    limit: questions per benchmark (None = the benchmark's own default). on_missing: `error`, or `skip` for questions
    whose image isn't there. choice_by: `generation`, or `likelihood` where a question has options. conditions: see
    `questions_of`.
    """

    benchmarks: Sequence[str]
    data: Path
    output: Path
    limit: int | None = None
    seed: int = 0
    on_missing: str = "error"
    choice_by: str = "generation"
    conditions: Sequence[str] = CONDITIONS

    @property
    def by_likelihood(self) -> bool:
        return self.choice_by == "likelihood"

    def plan(self) -> list[Chosen]:
        return plan_run(self.benchmarks, self.data, self.limit, self.seed, self.on_missing, self.by_likelihood)

    def questions(self, plan: Sequence[Chosen]) -> list[Question]:
        """All that is asked of a plan."""
        return [q for chosen in plan for q in chosen.questions(self.seed, self.by_likelihood, self.conditions)]


def evaluate_directory(
    model: str,
    benchmarks: Sequence[str],
    data: Path,
    output: Path,
    limit: int | None,
    seed: int,
    batch_size: int,
    *,
    dtype: str = AUTO,
    on_missing: str = "error",
    choice_by: str = "generation",
) -> dict[str, list[Score]]:
    """Score a model (see `mllm.load`); `Setup` and `evaluate_subject` say what the rest means."""
    setup = Setup(benchmarks, data, output, limit, seed, on_missing, choice_by)
    return evaluate_subject(setup, lambda: open_directory(model, dtype, batch_size))


Opened = tuple[Subject, str, list[TrainingRun]]


def open_directory(model: str, dtype: str, batch_size: int) -> Opened:
    """The model under test of a directory or hub id (see `mllm.load`), where it lies, and the training behind it."""
    subject, path = load_local(model, dtype, batch_size)
    return subject, str(path), training_runs(path)


def evaluate_subject(setup: Setup, open_subject: Callable[[], Opened]) -> dict[str, list[Score]]:
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
            replies = answer_all(setup.questions(plan), subject, log, ranks)
        except KeyboardInterrupt:
            known = f"the answers so far are kept in {setup.output / ASKED}"
            raise KeyboardInterrupt(f"{known}; the same command goes on from there") from None
        finally:
            log.close()
        if not any(reply.text for reply in replies.values()):
            raise UserError(f"{name} answered nothing to {len(replies)} question(s); {setup.output / ASKED} has them")
        outcome = score_replies(plan, replies, setup)
        if ranks.rank == 0:
            provenance = {"model": name} | _provenance(plan, subject, setup, hash_of) | {"official": outcome.official}
            provenance["empty_answers"] = {chosen.name: outcome.empty_answers(chosen.name) for chosen in plan}
            _write(setup.output, provenance, plan, outcome, runs)
        ranks.gather(None)  # no rank leaves before the files are there
    return outcome.scores


def _checked_plan(setup: Setup) -> list[Chosen]:
    check_files(setup.output, WRITTEN, BY)
    check_files(setup.output / ASKED, (), BY)
    return setup.plan()


def score_replies(plan: Sequence[Chosen], replies: Mapping[Question, Reply], setup: Setup) -> Outcome:
    """Replies to the questions of a plan → answers and scores under its conditions, with the majority's beside them."""
    outcome = Outcome({}, {}, {})

    def generate(questions: Sequence[Question]) -> list[Reply]:
        return [replies[question] for question in questions]

    for chosen in plan:
        benchmark, items = chosen.benchmark, chosen.items
        found = [
            answer
            for condition in setup.conditions
            for answer in ask(benchmark, items, condition, generate, setup.seed, setup.by_likelihood)
        ]
        majority = benchmark.majority(setup.data)
        if majority is not None:
            found += ask_majority(benchmark, items, majority)
        outcome.answers[chosen.name], outcome.scores[chosen.name] = found, summarize(found, setup.seed)
        outcome.official[chosen.name] = _official(benchmark, items, found, setup.conditions)
    return outcome


def _official(
    benchmark: Benchmark, items: Sequence[Item], answers: Sequence[Answer], conditions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The official numbers under each condition; {} for a benchmark of ours."""
    if not isinstance(benchmark, OfficialBenchmark):
        return {}
    texts = {c: [answer.answer for answer in answers if answer.condition == c] for c in conditions}
    results = {condition: benchmark.score_all(own, items) for condition, own in texts.items()}
    return {c: own.scores | ({"notes": list(own.notes)} if own.notes else {}) for c, own in results.items()}


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
    if not isinstance(chosen.benchmark, OfficialBenchmark):
        return said
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
