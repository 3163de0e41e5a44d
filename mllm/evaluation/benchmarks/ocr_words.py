"""Reading a rendered word that training never showed."""

from mllm.evaluation.benchmark import BENCHMARKS
from mllm.evaluation.heldout import HeldOutBenchmark


@BENCHMARKS.register("ocr_words")
class OcrWords(HeldOutBenchmark):
    file_name = "ocr_words.jsonl"
