"""`mllm compare`: two evaluations, question by question."""

import argparse
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Compare two evaluations of the same questions, question by question, with the difference's interval and a test of "
        "significance.",
        "mllm compare runs/a/eval runs/b/eval",
    )
    parser.add_argument("a", type=expanded, help="A directory that `mllm eval` wrote, or its answers.jsonl.")
    parser.add_argument("b", type=expanded, help="Another.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the bootstrap (default: %(default)s).")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def run(options: argparse.Namespace) -> None:
    from mllm.evaluation.compare import as_json, compare, print_comparisons

    comparisons = compare(Path(options.a), Path(options.b), options.seed)
    if options.json:
        print(as_json(comparisons))
    else:
        print_comparisons(comparisons, options.a, options.b)
