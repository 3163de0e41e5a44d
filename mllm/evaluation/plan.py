"""What a run asks: benchmarks read and sampled before any model is loaded, and what had to be left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import Benchmark, Item
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.official import OfficialBenchmark
from mllm.evaluation.question import Question
from mllm.evaluation.runner import CONDITIONS, missing_images, options_of, questions_of
from mllm.evaluation.sampling import complete_groups, stratified_sample

NAMED_IMAGES = 3


@dataclass(frozen=True)
class Skipped:
    """A question that isn't asked, and why."""

    benchmark: str
    item_id: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The questions of one benchmark that are asked: `items`, of `in_files` that its files hold."""

    name: str
    benchmark: Benchmark
    items: tuple[Item, ...]
    in_files: int
    skipped: tuple[Skipped, ...]

    def questions(
        self, seed: int, by_likelihood: bool = False, conditions: Sequence[str] = CONDITIONS
    ) -> list[Question]:
        """Those of all `conditions`, each once."""
        asked = (questions_of(self.benchmark, self.items, c, seed, by_likelihood) for c in conditions)
        return list(dict.fromkeys(question for own in asked for question in own))


def plan_run(
    names: Sequence[str],
    data: Path,
    limit: int | None,
    seed: int,
    on_missing: str = "error",
    by_likelihood: bool = False,
) -> list[Chosen]:
    """Read the benchmarks and draw their questions.

    limit: questions per benchmark (None = the benchmark's own default). on_missing: `error`, or `skip` to leave out
    questions whose image isn't there. Raises UserError for an unknown benchmark, missing files, nothing to ask, or
    questions whose answers couldn't be scored.
    """
    plan = [_choose(name, find_benchmark(name), data, limit, seed, on_missing) for name in dict.fromkeys(names)]
    if by_likelihood and not any(options_of(item) for chosen in plan for item in chosen.items):
        raise UserError(
            "choice by likelihood needs questions with options, such as those of ai2d, scienceqa or mmbench"
        )
    return plan


def _choose(name: str, benchmark: Benchmark, data: Path, limit: int | None, seed: int, on_missing: str) -> Chosen:
    everything = benchmark.items(data)
    if not everything:
        raise UserError(f"benchmark {name} has not a single question")
    sample = stratified_sample(everything, limit or benchmark.default_limit, seed)
    whole_groups = isinstance(benchmark, OfficialBenchmark) and benchmark.needs_whole_groups
    if whole_groups:
        sample = complete_groups(sample, everything)
    gone = set(missing_images(sample))
    if gone and on_missing == "error":
        shown = ", ".join(sorted(gone)[:NAMED_IMAGES])
        raise UserError(
            f"{name}: {len(gone)} image(s) are missing, such as {shown}; --on-missing skip leaves their questions out"
        )
    reasons = {item.id: f"image {item.image} is missing" for item in sample if str(item.image) in gone}
    if whole_groups:
        broken = {item.group for item in sample if item.id in reasons}
        alone = {i.id: "its group isn't whole" for i in sample if i.group in broken and i.id not in reasons}
        reasons |= alone
    kept = tuple(item for item in sample if item.id not in reasons)
    if not kept:
        raise UserError(f"{name}: all {len(sample)} question(s) lack their image, such as {sorted(gone)[0]}")
    if isinstance(benchmark, OfficialBenchmark):
        benchmark.check_items(kept)
    skipped = tuple(Skipped(name, item_id, reason) for item_id, reason in reasons.items())
    return Chosen(name, benchmark, kept, len(everything), skipped)
