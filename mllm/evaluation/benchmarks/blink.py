"""BLINK, validation split: 14 tasks of seeing that take people a blink, with one to four images (Fu et al. 2024).

Checked against the official `test_benchmark.py` and `evaluate.py`, lmms-eval 75571cf and VLMEvalKit e8e78f0; the full
release was not run here. The official script has a judge read what it can't; here such an answer is wrong and counted.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mllm.evaluation.benchmark import BENCHMARKS, Card, Item, TableRow, hub_layout
from mllm.evaluation.hub import ParquetRelease
from mllm.evaluation.letters import vlmevalkit_letter
from mllm.evaluation.metric import METRICS, mean, means_by
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.release import lettered
from mllm.evaluation.rules import Judge, RuledMetric, macro_mean

INSTRUCTION = "Note: You only need to respond with {} without providing any additional information.\n"
_FIRST = re.compile(r"[(\s]*([A-Z])", re.IGNORECASE)


class BlinkLine(ChoiceLine):
    """`task` is one of the 14."""

    task: str | None = None


def official_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter alone, in brackets or not, or the one option in brackets among the words; None goes to the judge."""
    if re.fullmatch(r"[A-E]|\([A-E]\)", answer):
        return answer.strip("()")
    named = [letter for letter in options if f"({letter})" in answer.split()]
    last = [letter for letter in options if f"({letter})" in answer.split("\n\n")[-1].split()]
    return next((own[0] for own in (last, named) if len(own) == 1), None)


def _official(line: BlinkLine) -> float:
    return float(official_letter(line.prediction, line.options) in line.references)


def _lmms_eval(line: BlinkLine) -> float:
    """The first character that isn't a space or bracket, if it is a letter: "Both" is B."""
    found = _FIRST.match(line.prediction.strip())
    return float(found is not None and found[1].upper() in line.references)


def _vlmevalkit(line: BlinkLine) -> float:
    return float(vlmevalkit_letter(line.prediction, line.options) in line.references)


@METRICS.register("blink")
class BlinkScore(RuledMetric):
    """Accuracy by task. `official` is the mean over tasks, the others over questions; no rule has its judge."""

    line = BlinkLine
    judges: ClassVar[Mapping[str, Judge]] = {"official": _official, "lmms_eval": _lmms_eval, "vlmevalkit": _vlmevalkit}

    def summarize(self, lines: Sequence[BlinkLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        tasks = [line.task for line in lines]
        score = macro_mean([task or "" for task in tasks], values) if rule == "official" else mean(values)
        return {"score": score} | means_by("task", tasks, values)

    def notes(self, lines: Sequence[BlinkLine]) -> tuple[str, ...]:
        unread = sum(official_letter(line.prediction, line.options) is None for line in lines)
        return (f"{unread} answer(s) would go to the official judge, and are wrong here",) if unread else ()


def _of_hub(row: TableRow) -> Sequence[Item]:
    options = lettered([str(choice) for choice in row["choices"]])
    question = INSTRUCTION.format(", ".join(options)) + row["prompt"]
    task = row["sub_task"]
    return [row.item(row["idx"], question, [row["answer"].strip("()")], task, options=options, task=task)]


@BENCHMARKS.register("blink")
class Blink(ParquetRelease):
    folder = "blink"
    metric = "blink"
    max_new_tokens = 128
    card = Card(
        title="BLINK validation",
        questions="1,901 in 14 tasks",
        files=("{task}/val-*.parquet",),
        source="https://huggingface.co/datasets/BLINK-Benchmark/BLINK",
        size="0.5 GB",
        licence="Apache-2.0; images by their sources' terms",
        protocol="all images, lmms-eval's instruction, the release's prompt; the official reading without its judge",
    )
    hub = (
        hub_layout(
            "BLINK-Benchmark/BLINK",
            "*/val-*.parquet",
            "idx sub_task choices answer prompt",
            _of_hub,
            "{idx}",
            "image_1",
        ),
    )
