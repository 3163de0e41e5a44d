"""The benchmarks, one file each. A file that registers itself here is found by its being here."""

from importlib import import_module
from pkgutil import iter_modules

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark
from mllm.evaluation.metric import METRICS, Metric
from mllm.evaluation.metrics.exact_match import ExactMatch
from mllm.evaluation.official import OfficialBenchmark
from mllm.evaluation.user_file import UserFile, is_user_file

__all__ = ["BENCHMARKS", "find_benchmark", "metric_of"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, as a data set of the hub holds it (`NAME@SOURCE`), or the user's own questions of
    `FILE.jsonl[:METRIC]`. Raises UserError with choices."""
    if is_user_file(name):
        return UserFile(name)
    name, _, source = name.partition("@")
    kind = BENCHMARKS.get(name)
    if not source:
        return kind()
    from mllm.evaluation.hub import from_hub

    return from_hub(name, kind, source)


def metric_of(name: str) -> type[Metric]:
    """What the scores of a benchmark mean; as exact match for one that isn't known here (of an older evaluation)."""
    try:
        benchmark = find_benchmark(name)
    except UserError:
        return ExactMatch
    return METRICS.get(benchmark.metric) if isinstance(benchmark, OfficialBenchmark) else ExactMatch
