"""Score a model on benchmarks, beside the same questions with the image withheld and swapped.

python eval/run.py --model runs/demo/stage2 --benchmarks easyvqa,clipart,ocr_words
"""

import argparse
from collections.abc import Sequence

from mllm.commands.eval import add_eval_arguments, run_eval
from mllm.commands.shared import configure_logging, run_command
from mllm.settings import expanded


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description="Score a model on benchmarks, beside its blind controls.",
        epilog="example:\n  python eval/run.py --model runs/demo/stage2 --benchmarks easyvqa,clipart --limit 200\n"
        "  torchrun --nproc_per_node 8 eval/run.py --model runs/demo/stage2 --benchmarks pope --data /data/benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", type=expanded, help="a model directory, a run's, a LLaVA directory or hub id, or openai:NAME"
    )
    add_eval_arguments(parser)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    options = parser.parse_args(arguments)
    configure_logging()
    run_eval(options)


if __name__ == "__main__":
    run_command(main)
