"""Scores on benchmarks while a model learns, by the runner that scores finished models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.asking import Question, Reply, answer_all
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.plan import Setup, questions_of_plan
from mllm.evaluation.ranks import ALONE, Ranks
from mllm.evaluation.scoring import Outcome, as_records, score_plan
from mllm.evaluation.subjects.local import LocalModel
from mllm.finetune.settings import BenchmarkSettings
from mllm.finetune.watching import RunContext, forget_later_lines, ranks_in_step
from mllm.model.multimodal import is_partitioned
from mllm.training.callbacks import Callback


class BenchmarkScores(Callback):
    """Metrics `benchmark/NAME`, and a line for each benchmark in `benchmarks.jsonl` with intervals and official numbers.

    Files are read once, at the start. The ranks share the questions; under ZeRO-3, where it takes all ranks to compute,
    each asks all of them and rank 0's answers count.
    """

    def __init__(self, context: RunContext, settings: BenchmarkSettings) -> None:
        """Raises UserError for an unknown benchmark, missing files or images, or a best checkpoint that is the worst."""
        self._context, self._settings = context, settings
        self._path = context.run_dir / "benchmarks.jsonl"
        self._setup = Setup(
            tuple(dict.fromkeys(settings.names)),
            Path(settings.data),
            context.run_dir,
            settings.limit,
            context.settings.seed,
            conditions=tuple(dict.fromkeys(settings.conditions)),
        )
        self._ranks = Ranks(context.engine.rank, context.engine.world_size)
        self._plan = self._ranks.first_on_0(self._setup.plan)
        names, conditions = self._setup.benchmarks, self._setup.conditions
        self.measures = tuple(metric_name(name, condition) for name in names for condition in conditions)
        train = context.settings.train
        _check_direction(names, train.keep_best_by, train.best_is)
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps
        if self._ranks.rank == 0:
            forget_later_lines(self._path, step)

    def measure(self, step: int) -> Mapping[str, float | str]:
        if step % self._settings.every_steps and step != self._total:
            return {}
        subject = LocalModel(self._context.model, self._context.processor, self._settings.batch_size, {})
        outcome = score_plan(self._plan, self._answer(subject), self._setup.seed, subject)
        if self._ranks.rank == 0:
            self._record(step, outcome)
        return {
            metric_name(name, entry.condition): entry.score
            for name, entries in outcome.scores.items()
            for entry in entries
            if entry.type == "overall" and entry.condition in self._setup.conditions
        }

    def _answer(self, subject: LocalModel) -> dict[Question, Reply]:
        model, engine = self._context.model, self._context.engine
        in_step = is_partitioned(engine.module)
        try:
            with engine.autocast(), ranks_in_step(model):
                questions, ranks = questions_of_plan(self._plan), ALONE if in_step else self._ranks
                replies = answer_all(questions, subject, None, ranks, shows_progress=False)
        finally:
            model.train()
        return self._ranks.gather(replies)[0] if in_step else replies

    def _record(self, step: int, outcome: Outcome) -> None:
        lines = [
            {"step": step, "benchmark": name, "scores": as_records(entries), "official": outcome.official[name]}
            for name, entries in outcome.scores.items()
        ]
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def metric_name(benchmark: str, condition: str) -> str:
    return f"benchmark/{benchmark}" if condition == "model" else f"benchmark/{benchmark}/{condition}"


def _check_direction(names: Sequence[str], keep_best_by: str | None, best_is: str) -> None:
    """Raise UserError where the best checkpoint goes by a benchmark's score, and its worst would be kept."""
    name = next((name for name in names if keep_best_by == metric_name(name, "model")), None)
    if name is None:
        return
    wanted = "lowest" if metric_of(name).lower_is_better else "highest"
    if best_is != wanted:
        better = "less" if wanted == "lowest" else "more"
        raise UserError(f"train.keep_best_by: {keep_best_by}: {better} is better; write train.best_is: {wanted}")
