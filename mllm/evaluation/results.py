"""What an evaluation writes: scores with all that they depend on, answers, reports; and the table that it prints."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

import mllm
from mllm.console import report_console
from mllm.evaluation.asking import Subject
from mllm.evaluation.benchmark import Item
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.conditions import CONTRASTS, INJECTIONS
from mllm.evaluation.confidence_drawing import draw_confidences
from mllm.evaluation.confidences import abstention_remark, reliability_of
from mllm.evaluation.injection import Injection, flips_said
from mllm.evaluation.medium import source_hash
from mllm.evaluation.plan import Chosen, Setup
from mllm.evaluation.report import TrainingRun, as_markdown, write_report
from mllm.evaluation.scoring import Outcome, Score, as_records
from mllm.files import write_json_atomically, write_text_atomically
from mllm.outputs import check_files

logger = logging.getLogger(__name__)

BY = "mllm eval"
ASKED = "asked"
WRITTEN = ("answers.jsonl", "skipped.jsonl", "results.json", "report.md", "report.html")
PACKAGES = ("torch", "transformers", "tokenizers", "pillow")


def check_output(output: Path) -> None:
    """Raise UserError for files in the output that would be replaced and that no evaluation wrote."""
    check_files(output, WRITTEN, BY)
    check_files(output / ASKED, (), BY)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _hash_of_media(item: Item, hash_of: Callable[[str], str]) -> str | list[str] | None:
    """The content hash of the one image or video of an item, a list of those of several, None without any."""
    hashes = [hash_of(medium.source) for medium in item.media]
    return hashes if len(hashes) > 1 else next(iter(hashes), None)


def _provenance(
    plan: Sequence[Chosen], subject: Subject, setup: Setup, hash_of: Callable[[str], str]
) -> dict[str, Any]:
    """What a score depends on: weights, questions, media, prompts, versions; and what was left out."""
    questions = {c.name: [(i.id, i.question, i.references) for i in c.items] for c in plan}
    media = {c.name: [_hash_of_media(item, hash_of) for item in c.items] for c in plan}
    prompts = {c.name: [c.benchmark.prompt(item) for item in c.items] for c in plan}
    measured = [c.name for c in plan if c.benchmark.measures]
    return {
        **subject.identity,
        "questions_sha256": _hash(questions),
        "data_sha256": {name: _hash([questions[name], media[name]]) for name in questions},
        "prompt_sha256": {name: _hash([subject.identity.get("prompt_format"), own]) for name, own in prompts.items()},
        "decoding": {
            # An endpoint says its temperature where that isn't 0.
            "do_sample": subject.identity.get("temperature", 0) != 0,
            "choice_by": setup.choice_by,
            **({"measured": measured} if measured else {}),
            "max_new_tokens": {c.name: c.benchmark.max_new_tokens for c in plan},
        },
        **({"injection": asdict(setup.injection)} if set(INJECTIONS) & set(setup.conditions) else {}),
        **({"contrast": asdict(setup.contrast)} if setup.contrast and set(CONTRASTS) & set(setup.conditions) else {}),
        "seed": setup.seed,
        "versions": {"mllm": mllm.__version__, **{package: version(package) for package in PACKAGES}},
        "is_partial": any(chosen.skipped for chosen in plan),
        "coverage": {c.name: {"in_files": c.in_files, "asked": len(c.items), "skipped": len(c.skipped)} for c in plan},
    }


def partial_note(plan: Sequence[Chosen]) -> str | None:
    """What to say beside scores from which questions are missing; None where none is."""
    lost = [f"{c.name}: {len(c.skipped)} of {len(c.skipped) + len(c.items)}" for c in plan if c.skipped]
    return f"PARTIAL: questions were skipped ({'; '.join(lost)}); skipped.jsonl says why" if lost else None


def remarks(
    chosen: Chosen,
    official: Mapping[str, Mapping[str, Any]],
    empty_answers: int = 0,
    injection: Injection | None = None,
) -> list[str]:
    """What a reader has to know of a benchmark's scores: that they are a sample's, how many answers are empty or couldn't be
    read, the official number, how many answers turned to what was written into the images, how many say yes where they were
    contrasted, others' figures."""
    asked, said = len(chosen.items), []
    if asked < chosen.in_files:
        said.append(f"A sample: {asked} of {chosen.in_files} questions were asked.")
    if empty_answers:
        said.append(f"{empty_answers} of {asked} answers are empty.")
    if "model" in official:
        said.append(f"Official number ({chosen.benchmark.metric}): {official['model']['score']:.4g}.")
        said += [f"{note[:1].upper()}{note[1:]}." for note in official["model"].get("notes", ())]
    flips = {condition: own["flips"] for condition, own in official.items() if "flips" in own}
    said += flips_said(injection or Injection(), flips)
    yes = {condition: own["begins_with_yes"] for condition, own in official.items() if "begins_with_yes" in own}
    if yes:
        shares = ", ".join(f"{100 * share:.1f} % ({condition})" for condition, share in yes.items())
        said.append(f"Answers that begin with yes: {shares}.")
    for figure in chosen.benchmark.card.published:
        note = f" ({figure.note})" if figure.note else ""
        said.append(f"Published: {figure.model} {figure.percent} %{note}. Source: {figure.source}.")
    return said


def write_results(
    setup: Setup,
    name: str,
    subject: Subject,
    plan: Sequence[Chosen],
    outcome: Outcome,
    runs: Sequence[TrainingRun],
    hash_of: Callable[[str], str] = source_hash,
) -> None:
    """Write `WRITTEN` to the output of a setup: scores with what they depend on, answers, what was skipped, two reports.

    name: of the model under test. runs: the training behind it. hash_of: the content hash of an image or a video.
    """
    output, scores, answers = setup.output, outcome.scores, outcome.answers
    empty = {chosen.name: outcome.empty_answers(chosen.name) for chosen in plan}
    provenance = {"model": name} | _provenance(plan, subject, setup, hash_of)
    found = {
        "official": outcome.official,
        "empty_answers": empty,
        "reliability": reliability_of(outcome),
        "scores": {benchmark: as_records(entries) for benchmark, entries in scores.items()},
    }
    lines = [json.dumps({"benchmark": n} | r, ensure_ascii=False) for n, e in answers.items() for r in as_records(e)]
    write_text_atomically(output / "answers.jsonl", "\n".join(lines) + "\n", BY)
    skipped = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for chosen in plan for entry in chosen.skipped]
    write_text_atomically(output / "skipped.jsonl", "".join(skipped), BY)
    write_json_atomically(output / "results.json", provenance | found, BY)
    note = partial_note(plan)
    said = {
        chosen.name: [
            *remarks(chosen, outcome.official[chosen.name], empty[chosen.name], setup.injection),
            *abstention_remark(answers[chosen.name], setup.min_confidence),
        ]
        for chosen in plan
    }
    title = f"Scores of {name}"
    write_text_atomically(output / "report.md", as_markdown(title, scores, note, said), BY)
    drawings = {name: draw_confidences(name, own) for name, own in answers.items()}
    write_report(output / "report.html", title, scores, answers, runs, note, said, drawings, BY)
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
