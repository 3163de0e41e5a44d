"""The category of a piece of clip art that training never saw."""

from mllm.evaluation.benchmark import BENCHMARKS
from mllm.evaluation.heldout import HeldOutBenchmark


@BENCHMARKS.register("clipart")
class Clipart(HeldOutBenchmark):
    file_name = "clipart.jsonl"
