"""The benchmarks, one file each. A file that registers itself here is found by its being here."""

from importlib import import_module
from pkgutil import iter_modules

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark
from mllm.evaluation.user_file import UserFile, is_user_file

__all__ = ["BENCHMARKS", "find_benchmark"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, or the user's own questions of `FILE.jsonl[:METRIC]`. Raises UserError with choices."""
    return UserFile(name) if is_user_file(name) else BENCHMARKS.get(name)()
