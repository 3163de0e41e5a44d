"""Two evaluations question by question: is the difference more than chance? The work behind `mllm compare`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm.console import report_console
from mllm.errors import UserError
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.statistics import bootstrap_interval, bootstrap_p_value

MODEL = "model"


@dataclass(frozen=True)
class Comparison:
    """One benchmark. `difference` is B − A of the mean score, with its 95% interval over images.

    only_a, only_b: questions that A, and B, answered better; better is less where `lower_is_better`.

    `test` is `mcnemar` where every score is 0 or 1 (exact, two-sided, over the questions that one of the two got right),
    else `bootstrap` (how often a resampled difference lies on the other side of 0, doubled); both pair by question.
    """

    benchmark: str
    count: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    test: str
    p_value: float
    lower_is_better: bool


def compare(a: Path, b: Path, seed: int = 0) -> list[Comparison]:
    """Compare two result directories (or their answers.jsonl) on the benchmarks that both have.

    Raises UserError where a file is missing or broken, nothing is shared, or the two didn't ask the same questions.
    """
    first, second = read_answers(a), read_answers(b)
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(f"{a} has {', '.join(first)} and {b} has {', '.join(second)}: no benchmark in common")
    return [_compare(name, first[name], second[name], seed) for name in shared]


def answers_file(path: Path) -> Path:
    """`answers.jsonl` of a results directory, of the `eval/` in a model's or run's directory, or the file itself."""
    places = [path, path / "answers.jsonl", path / "eval" / "answers.jsonl"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{path} has no answers.jsonl; give the directory that `mllm eval` wrote, or the file")
    return found


def read_answers(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """benchmark → question id → the model's own answer (blind controls are left out)."""
    file = answers_file(path)
    benchmarks: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, item, score = str(record["benchmark"]), str(record["item_id"]), float(record["score"])
            is_models, _ = record["condition"] == MODEL, record["references"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}:{number}: not an answer of an evaluation: {error!r}") from None
        if not np.isfinite(score):
            raise UserError(f"{file}:{number}: the score of question {item!r} is {score}")
        own = benchmarks.setdefault(name, {}) if is_models else None
        if own is not None and own.setdefault(item, record) is not record:
            raise UserError(f"{file}:{number}: question {item!r} of {name} was answered before")
    if not benchmarks:
        raise UserError(f"{file} has no answer of a model")
    return benchmarks


def _compare(name: str, a: Mapping[str, dict[str, Any]], b: Mapping[str, dict[str, Any]], seed: int) -> Comparison:
    alone = a.keys() ^ b.keys()
    if alone:
        raise UserError(f"{name}: {len(alone)} question(s) were asked in one evaluation alone, such as {min(alone)!r}")
    other = next((item for item in a if a[item]["references"] != b[item]["references"]), None)
    if other is not None:
        raise UserError(f"{name}: question {other!r} has other references in the second evaluation")
    scores_a = np.array([a[item]["score"] for item in a], dtype=np.float64)
    scores_b = np.array([b[item]["score"] for item in a], dtype=np.float64)
    gains = scores_b - scores_a
    groups = [str(a[item].get("group", item)) for item in a]
    low, high = bootstrap_interval(gains.tolist(), groups, seed)
    only_a, only_b = int((gains < 0).sum()), int((gains > 0).sum())
    lower_is_better = metric_of(name).lower_is_better
    if lower_is_better:
        only_a, only_b = only_b, only_a
    is_binary = set(np.concatenate([scores_a, scores_b])) <= {0.0, 1.0}
    p_value = mcnemar(only_a, only_b) if is_binary else bootstrap_p_value(gains, groups, seed)
    return Comparison(
        name,
        len(gains),
        float(scores_a.mean()),
        float(scores_b.mean()),
        float(gains.mean()),
        low,
        high,
        only_a,
        only_b,
        "mcnemar" if is_binary else "bootstrap",
        p_value,
        lower_is_better,
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): a fair coin for every question that just one got right."""
    if only_a + only_b == 0:
        return 1.0
    try:
        from scipy.stats import binomtest
    except ImportError:
        raise UserError("mllm compare needs scipy: pip install 'mllm[eval]'") from None

    return float(binomtest(only_a, only_a + only_b).pvalue)


def as_json(comparisons: Sequence[Comparison]) -> str:
    return json.dumps([asdict(entry) for entry in comparisons], indent=2)


def print_comparisons(comparisons: Sequence[Comparison], a: str, b: str) -> None:
    """A table of percentages."""
    from rich.table import Table

    table = Table(title=f"A = {a}, B = {b}; mean score, %")
    for column in ("benchmark", "questions", "A", "B", "B − A [95%]", "better: A / B", "p"):
        table.add_column(column)
    for entry in comparisons:
        interval = f"{100 * entry.difference:+.1f} [{100 * entry.low:+.1f}, {100 * entry.high:+.1f}]"
        table.add_row(
            entry.benchmark + (" (less is better)" if entry.lower_is_better else ""),
            str(entry.count),
            f"{100 * entry.a:.1f}",
            f"{100 * entry.b:.1f}",
            interval,
            f"{entry.only_a} / {entry.only_b}",
            f"{entry.p_value:.2g} ({entry.test})",
        )
    report_console().print(table)
