"""The benchmarks, one file each, by name. A file that registers itself here or among the metrics is found by being there."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from mllm.errors import UserError
from mllm.evaluation import metrics
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark
from mllm.evaluation.metric import METRICS, Metric, build_metric
from mllm.evaluation.metrics.exact_match import ExactMatchScore
from mllm.evaluation.user_file import UserFile, is_user_file

__all__ = ["BENCHMARKS", "METRICS", "benchmark_files", "build_metric", "find_benchmark", "metric_of"]

RECIPES = Path(__file__).parents[3] / "data_recipes"

for _package, _path in ((metrics.__name__, metrics.__path__), (__name__, __path__)):
    for _module in iter_modules(_path):
        import_module(f"{_package}.{_module.name}")


def benchmark_files() -> dict[str, Path]:
    """The files that describe benchmarks beside the recipes of a checkout, by name: `data_recipes/*/benchmarks/NAME.yaml`."""
    return {path.stem: path for path in sorted(RECIPES.glob("*/benchmarks/*.yaml"))}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, as a data set of the hub holds it (`NAME@SOURCE`), or the user's own questions of
    `FILE.jsonl[:METRIC]` or `FILE.yaml`. Raises UserError with choices."""
    if is_user_file(name):
        return UserFile(name)
    name, _, source = name.partition("@")
    files = benchmark_files()
    if name not in BENCHMARKS and name not in files:
        raise UserError(f"unknown benchmark {name!r}; choose one of: {', '.join(sorted([*BENCHMARKS, *files]))}")
    if not source:
        return BENCHMARKS.get(name)() if name in BENCHMARKS else UserFile(str(files[name]))
    from mllm.evaluation.hub import from_hub

    return from_hub(name, BENCHMARKS.get(name), source)


def metric_of(name: str) -> type[Metric]:
    """What the scores of a benchmark mean; as exact match for one that isn't known here (of an older evaluation)."""
    try:
        return METRICS.get(find_benchmark(name).metric)
    except UserError:
        return ExactMatchScore
