"""The arguments and the work of `mllm eval` and `eval/run.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mllm.errors import UserError


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--benchmarks", help="names, separated by commas; FILE.jsonl or FILE.jsonl:METRIC are your own questions"
    )
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="where the benchmarks' files lie")
    parser.add_argument("--output", type=Path, help="where results.json and answers.jsonl go (default: MODEL/eval)")
    parser.add_argument("--limit", type=int, help="questions per benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--list", action="store_true", help="say which benchmarks there are, and where to get them")


def run_eval(options: argparse.Namespace) -> None:
    """Raises UserError when model or benchmarks are missing, unknown or not on disk."""
    if options.list:
        list_benchmarks()
        return
    if not options.model or not options.benchmarks:
        raise UserError("give a model and --benchmarks, or --list to see which benchmarks there are")

    from mllm.evaluation.run import evaluate_directory, print_scores

    output = options.output or Path(options.model) / "eval"
    names = _names(options.benchmarks)
    print_scores(
        evaluate_directory(options.model, names, options.data, output, options.limit, options.seed, options.batch_size)
    )


def _names(text: str) -> Sequence[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def list_benchmarks() -> None:
    """Print each benchmark's card: files, where to get them, size, licence, protocol and metric."""
    from mllm.evaluation.benchmarks import BENCHMARKS
    from mllm.evaluation.official import OfficialBenchmark
    from mllm.evaluation.user_file import UserFile

    for name in (*BENCHMARKS, "FILE.jsonl"):
        kind = UserFile if name == "FILE.jsonl" else BENCHMARKS.get(name)
        if not issubclass(kind, OfficialBenchmark):
            print(f"{name}\n  {_first_line(kind)}; made by the demo (`make demo`)\n")
            continue
        card = kind.card
        metric = getattr(kind, "metric", "exact_match")
        place = f"DATA/{kind.folder}/" if hasattr(kind, "folder") else ""
        print(f"{name}\n  {card.title}: {card.questions}")
        print(f"  files    {place}{{{', '.join(card.files)}}}" if place else f"  line     {card.files[0]}")
        print(f"  from     {card.source}; {card.size}\n  licence  {card.licence}")
        print(f"  protocol {card.protocol} (metric {metric}, up to {kind.max_new_tokens} tokens)\n")


def _first_line(kind: type) -> str:
    """What the module of a benchmark says it is."""
    import sys

    return (sys.modules[kind.__module__].__doc__ or "").split("\n")[0].rstrip(".")
