"""The run behind `eval/run.py`: benchmarks × conditions, a result file that says how it was made, and a table."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mllm.errors import UserError
from mllm.evaluation.benchmark import Benchmark, Item
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.curves import TrainingRun, training_runs
from mllm.evaluation.official import OfficialBenchmark
from mllm.evaluation.report import write_report
from mllm.evaluation.runner import CONDITIONS, Answer, Score, as_records, ask, ask_majority, summarize
from mllm.evaluation.sampling import complete_groups, stratified_sample
from mllm.files import write_json_atomically, write_text_atomically
from mllm.inference.generate import Request, generate_batch
from mllm.model.checkpoint import directory_hash, load, model_directory

logger = logging.getLogger(__name__)


def evaluate_directory(
    model: str, benchmarks: Sequence[str], data: Path, output: Path, limit: int | None, seed: int, batch_size: int
) -> dict[str, list[Score]]:
    """Score a model directory (or a finished run's) and write `results.json`, `answers.jsonl`, `report.html` to `output`.

    limit: questions per benchmark (None = the benchmark's own default). Raises UserError for an unknown benchmark or
    missing files, before the model is loaded.
    """
    chosen = {name: find_benchmark(name) for name in benchmarks}
    items = {name: _sample(benchmark, benchmark.items(data), limit, seed) for name, benchmark in chosen.items()}
    if any(not entries for entries in items.values()):
        raise UserError(f"benchmark(s) without a single question: {[n for n, e in items.items() if not e]}")
    path = model_directory(model)
    network, processor = load(path)
    scores: dict[str, list[Score]] = {}
    answers: dict[str, list[Answer]] = {}
    official: dict[str, dict[str, dict[str, Any]]] = {}
    with Progress() as progress:
        for name, benchmark in chosen.items():
            task = progress.add_task(name, total=len(CONDITIONS) * len(items[name]))

            def generate(requests: Sequence[Request], max_new_tokens: int, task: Any = task) -> list[str]:
                def advance(count: int) -> None:
                    progress.advance(task, count)

                return generate_batch(network, processor, requests, max_new_tokens, batch_size, advance)

            found = [a for c in CONDITIONS for a in ask(benchmark, items[name], c, generate, seed)]
            majority = benchmark.majority(data)
            if majority is not None:
                found += ask_majority(benchmark, items[name], majority)
            progress.update(task, completed=len(CONDITIONS) * len(items[name]))
            answers[name], scores[name] = found, summarize(found, seed)
            official[name] = _official(benchmark, items[name], found)
    provenance = _provenance(path, processor.format_name, answers, seed)
    _write(output, provenance | {"official": official}, scores, answers, training_runs(path))
    return scores


def _sample(benchmark: Benchmark, items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    sample = stratified_sample(items, limit or benchmark.default_limit, seed)
    if isinstance(benchmark, OfficialBenchmark) and benchmark.needs_whole_groups:
        return complete_groups(sample, items)
    return sample


def _official(benchmark: Benchmark, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """The official numbers under each condition; {} for a benchmark of ours."""
    if not isinstance(benchmark, OfficialBenchmark):
        return {}
    texts = {c: [answer.answer for answer in answers if answer.condition == c] for c in CONDITIONS}
    return {condition: benchmark.score_all(own, items).scores for condition, own in texts.items()}


def _provenance(path: Path, prompt_format: str, answers: dict[str, list[Answer]], seed: int) -> dict[str, Any]:
    """What a score depends on: weights, questions, prompt format, decoding, versions."""
    questions = json.dumps({n: [(a.item_id, a.question, a.references) for a in e] for n, e in answers.items()})
    return {
        "model": str(path),
        "model_sha256": directory_hash(path),
        "questions_sha256": hashlib.sha256(questions.encode()).hexdigest(),
        "prompt_format": prompt_format,
        "decoding": {"do_sample": False},
        "dtype": "float32",
        "seed": seed,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _write(
    output: Path,
    provenance: dict[str, Any],
    scores: dict[str, list[Score]],
    answers: dict[str, list[Answer]],
    runs: list[TrainingRun],
) -> None:
    lines = [json.dumps({"benchmark": n} | r, ensure_ascii=False) for n, e in answers.items() for r in as_records(e)]
    write_text_atomically(output / "answers.jsonl", "\n".join(lines) + "\n")
    write_json_atomically(
        output / "results.json",
        provenance | {"scores": {name: as_records(entries) for name, entries in scores.items()}},
    )
    write_report(output / "report.html", f"Scores of {provenance['model']}", scores, answers, runs)
    logger.info("wrote results.json, answers.jsonl and report.html to %s", output)


def print_scores(scores: dict[str, list[Score]]) -> None:
    """A table of percentages with their 95% intervals."""
    conditions = list(dict.fromkeys(entry.condition for entries in scores.values() for entry in entries))
    table = Table(title="mean score, % [95% interval]")
    for column in ("benchmark", "type", "questions", *conditions):
        table.add_column(column)
    for name, entries in scores.items():
        for kind in dict.fromkeys(entry.type for entry in entries):
            cells = {
                e.condition: f"{100 * e.score:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
                for e in entries
                if e.type == kind
            }
            count = next(e.count for e in entries if e.type == kind)
            table.add_row(name, kind, str(count), *(cells.get(c, "") for c in conditions))
    Console().print(table)
