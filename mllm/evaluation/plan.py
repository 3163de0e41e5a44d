"""What a run asks: benchmarks read and sampled before any model is loaded, and what had to be left out."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.asking import Question
from mllm.evaluation.benchmark import Benchmark, Item, MajorityAnswer
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.conditions import CONDITIONS, INJECTIONS
from mllm.evaluation.controls import complete_groups, options_of, questions_of, stratified_sample
from mllm.evaluation.injection import Injection
from mllm.evaluation.medium import Medium
from mllm.inference.contrast import Contrast

NAMED_MEDIA = 3


@dataclass(frozen=True)
class Skipped:
    """A question that isn't asked, and why."""

    benchmark: str
    item_id: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The questions of one benchmark that are asked: `items`, of `in_files` that its files hold.

    questions: by condition, one an item. majority: what predicts answers without looking, None where nothing does.
    """

    name: str
    benchmark: Benchmark
    items: tuple[Item, ...]
    in_files: int
    skipped: tuple[Skipped, ...]
    questions: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    majority: MajorityAnswer | None = None


@dataclass(frozen=True)
class Setup:
    """What is asked, and where results go.

    data: where the benchmarks' files lie (None = where each says). limit: questions per benchmark (None = the benchmark's
    own default). on_missing: `error`, or `skip` for questions whose image isn't there. choice_by: `generation`, or
    `likelihood` where a question has options. conditions, injection, contrast: see `questions_of`. calibration: the file by
    which answers have a confidence (None = the one beside the model, if there is one). min_confidence: abstain below it
    (None = never).
    """

    benchmarks: Sequence[str]
    data: Path | None
    output: Path
    limit: int | None = None
    seed: int = 0
    on_missing: str = "error"
    choice_by: str = "generation"
    conditions: Sequence[str] = CONDITIONS
    injection: Injection = field(default_factory=Injection)
    calibration: Path | None = None
    min_confidence: float | None = None
    contrast: Contrast | None = None

    def plan(self) -> list[Chosen]:
        by_likelihood = self.choice_by == "likelihood"
        return plan_run(
            self.benchmarks,
            self.data,
            self.limit,
            self.seed,
            self.on_missing,
            by_likelihood,
            self.conditions,
            self.injection,
            self.contrast,
        )


def plan_run(
    names: Sequence[str],
    data: Path | None,
    limit: int | None,
    seed: int,
    on_missing: str = "error",
    by_likelihood: bool = False,
    conditions: Sequence[str] = CONDITIONS,
    injection: Injection | None = None,
    contrast: Contrast | None = None,
) -> list[Chosen]:
    """Read the benchmarks and draw their questions.

    data: where their files lie (None = where each says). limit: questions per benchmark (None = its own default).
    on_missing: `error`, or `skip` to leave out questions whose image isn't there. Raises UserError for an unknown benchmark,
    missing files, nothing to ask, questions whose answers couldn't be scored, or conditions that lack what they are compared
    with.
    """
    if any(condition in INJECTIONS for condition in conditions) and "model" not in conditions:
        raise UserError(
            "answers that turn are counted beside those to the image as it is: name the condition model, too"
        )
    plan = []
    for name in dict.fromkeys(names):
        benchmark = find_benchmark(name)
        directory = data or benchmark.default_data
        if directory is None:
            raise UserError(f"{name}: say where its files lie with --data DIR; they are in DIR/{benchmark.folder}")
        chosen = _choose(name, benchmark, directory, limit, seed, on_missing)
        questions = {
            c: tuple(questions_of(benchmark, chosen.items, c, seed, by_likelihood, injection, contrast))
            for c in conditions
        }
        plan.append(replace(chosen, questions=questions, majority=benchmark.majority(directory)))
    if by_likelihood and not any(options_of(item) for chosen in plan for item in chosen.items):
        raise UserError(
            "choice by likelihood needs questions with options, such as those of ai2d, scienceqa or mmbench"
        )
    return plan


def questions_of_plan(plan: Sequence[Chosen]) -> list[Question]:
    """All that is asked of a plan, under every condition."""
    return [question for chosen in plan for own in chosen.questions.values() for question in own]


def _choose(name: str, benchmark: Benchmark, data: Path, limit: int | None, seed: int, on_missing: str) -> Chosen:
    everything = benchmark.items(data)
    if not everything:
        raise UserError(f"benchmark {name} has not a single question")
    sample = stratified_sample(everything, limit or benchmark.default_limit, seed)
    if benchmark.needs_whole_groups:
        sample = complete_groups(sample, everything)
    gone = set(missing_media(sample))
    if gone and on_missing == "error":
        named = ", ".join(sorted(medium.source for medium in gone)[:NAMED_MEDIA])
        raise UserError(
            f"{name}: {_counted(gone)} are missing, such as {named}; --on-missing skip leaves their questions out"
        )
    lacking = {item.id: next((medium for medium in item.media if medium in gone), None) for item in sample}
    reasons = {i: f"{lost.part.type} {lost.source} is missing" for i, lost in lacking.items() if lost is not None}
    if benchmark.needs_whole_groups:
        broken = {item.group for item in sample if item.id in reasons}
        alone = {i.id: "its group isn't whole" for i in sample if i.group in broken and i.id not in reasons}
        reasons |= alone
    kept = tuple(item for item in sample if item.id not in reasons)
    if not kept:
        lost = min(gone, key=lambda medium: medium.source)
        raise UserError(f"{name}: all {len(sample)} question(s) lack their {lost.part.type}, such as {lost.source}")
    benchmark.check_items(kept)
    skipped = tuple(Skipped(name, item_id, reason) for item_id, reason in reasons.items())
    return Chosen(name, benchmark, kept, len(everything), skipped)


def missing_media(items: Sequence[Item]) -> list[Medium]:
    """Images and videos that items name and that aren't there, by their names."""
    named = {medium for item in items for medium in item.media}
    return sorted((medium for medium in named if not medium.is_there), key=lambda medium: medium.source)


def _counted(media: Collection[Medium]) -> str:
    kinds = Counter(medium.part.type for medium in media)
    return " and ".join(f"{count} {kind}(s)" for kind, count in sorted(kinds.items()))
