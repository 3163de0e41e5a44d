"""Score a model on benchmarks, beside the same questions with the image withheld and swapped.

python eval/run.py --model runs/demo/stage2 --benchmarks easyvqa,clipart,ocr_words
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mllm.command import configure_logging, run_command


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description="Score a model on benchmarks, beside its blind controls.",
        epilog="example:\n  python eval/run.py --model runs/demo/stage2 --benchmarks easyvqa,clipart --limit 200",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model directory, or a finished run's")
    parser.add_argument("--benchmarks", required=True, help="names, separated by commas")
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="the prepared data directory")
    parser.add_argument("--output", type=Path, help="where results.json and answers.jsonl go (default: MODEL/eval)")
    parser.add_argument("--limit", type=int, help="questions per benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(arguments)
    configure_logging()

    from mllm.evaluation.run import evaluate_directory, print_scores

    output = options.output or Path(options.model) / "eval"
    names = [name.strip() for name in options.benchmarks.split(",") if name.strip()]
    scores = evaluate_directory(
        options.model, names, options.data, output, options.limit, options.seed, options.batch_size
    )
    print_scores(scores)


if __name__ == "__main__":
    run_command(main)
