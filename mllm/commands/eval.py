"""The arguments and the work of `mllm eval` and `eval/run.py`."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from mllm.clients.openai import MaxTokensName, Sampling
from mllm.errors import UserError
from mllm.settings import expanded_benchmark, expanded_path


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--benchmarks",
        help="names, separated by commas; NAME@SOURCE is read from a data set of the hub (its id, or a copy of its files), "
        "FILE.jsonl, FILE.jsonl:METRIC or FILE.yaml are your own questions",
    )
    parser.add_argument(
        "--data",
        type=expanded_path,
        help="the directory that holds each benchmark's files (default: what the benchmark's own file says)",
    )
    parser.add_argument(
        "--output", type=expanded_path, help="where results.json and answers.jsonl go (default: MODEL/eval)"
    )
    parser.add_argument("--limit", type=at_least_1, help="questions per benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=at_least_1, default=32)
    parser.add_argument("--base-url", help="of an OpenAI-compatible endpoint, for a MODEL openai:NAME")
    parser.add_argument(
        "--concurrency", type=at_least_1, default=8, help="requests to an endpoint that are under way at a time"
    )
    parser.add_argument(
        "--max-tokens-name",
        choices=get_args(MaxTokensName),
        default="max_tokens",
        help="what an endpoint calls the limit of an answer's tokens; newer models of OpenAI want the second",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        help="of an endpoint's answers; null: not sent, for models that refuse 0, and its answers may vary",
    )
    parser.add_argument(
        "--thinking-tokens",
        type=int,
        default=0,
        help="that an endpoint's answer may have beyond a benchmark's limit, for models whose reasoning counts",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the weights; auto: bfloat16 on a GPU that has it, float32 elsewhere (results.json says which)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: this process's GPU if there is one)")
    parser.add_argument(
        "--on-missing",
        choices=["error", "skip"],
        default="error",
        help="questions whose image isn't there: end before anything is asked, or list and leave out",
    )
    parser.add_argument(
        "--choice-by",
        choices=["generation", "likelihood"],
        default="generation",
        help="multiple choice: what the model writes, or the likeliest of the options",
    )
    parser.add_argument("--list", action="store_true", help="say which benchmarks there are, and where to get them")


def at_least_1(text: str) -> int:
    """Of a count. Raises ArgumentTypeError, of which argparse makes a line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def temperature(text: str) -> float | None:
    """Of `--temperature`; None for `null`. Raises ValueError, of which argparse makes a line."""
    value = None if text == "null" else float(text)
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


def run_eval(options: argparse.Namespace) -> None:
    """Raises UserError when model or benchmarks are missing, unknown or not on disk."""
    if options.list:
        list_benchmarks()
        return
    if not options.model or not options.benchmarks:
        raise UserError("give a model and --benchmarks, or --list to see which benchmarks there are")

    from mllm.evaluation.benchmarks import find_benchmark
    from mllm.evaluation.plan import Setup
    from mllm.evaluation.results import print_scores
    from mllm.evaluation.run import evaluate_subject

    names = [expanded_benchmark(name.strip()) for name in options.benchmarks.split(",") if name.strip()]
    if not names:
        raise UserError(f"--benchmarks {options.benchmarks!r} names none; --list says which there are")
    for name in names:
        find_benchmark(name)
    setup = Setup(
        names, options.data, _output(options), options.limit, options.seed, options.on_missing, options.choice_by
    )
    outcome = evaluate_subject(setup, _subject(options))
    if os.environ.get("RANK", "0") == "0":
        print_scores(outcome.scores)


def _subject(options: argparse.Namespace) -> Callable[[], Any]:
    """What opens the model that the options name: `openai:NAME` at `--base-url`, or one to be loaded."""
    from mllm.evaluation.subjects.endpoint import PREFIX, Endpoint
    from mllm.evaluation.subjects.local import open_directory

    if not options.model.startswith(PREFIX):
        if options.base_url:
            raise UserError(f"--base-url goes with a model {PREFIX}NAME, not with {options.model}")
        return lambda: open_directory(options.model, options.dtype, options.batch_size, options.device)
    if not options.base_url:
        raise UserError(f"{options.model} needs --base-url, such as http://127.0.0.1:8000/v1")
    name = options.model.removeprefix(PREFIX)
    sampling = Sampling(options.max_tokens_name, options.temperature)

    def open_endpoint() -> Any:
        endpoint = Endpoint(
            name, options.base_url, options.concurrency, sampling=sampling, thinking_tokens=options.thinking_tokens
        )
        return endpoint, options.model, []

    return open_endpoint


def _output(options: argparse.Namespace) -> Path:
    if options.output:
        return options.output
    if not Path(options.model).is_dir():
        raise UserError(
            f"{options.model} is no directory here; for a hub id or an endpoint, say --output where results should go"
        )
    return Path(options.model) / "eval"


def list_benchmarks() -> None:
    """Print each benchmark's card: files, where to get them, size, licence, protocol and metric."""
    from mllm.evaluation.benchmarks import BENCHMARKS, benchmark_files
    from mllm.evaluation.user_file import UserFile

    for name in BENCHMARKS:
        kind = BENCHMARKS.get(name)
        print(f"{name}\n  {kind.card.title}: {kind.card.questions}")
        print(f"  files    DATA/{kind.folder}/{{{', '.join(kind.card.files)}}}")
        for layout in kind.hub:
            print(f"  or       {name}@{layout.repository} ({', '.join(layout.patterns)})")
        _print_terms(kind.card, kind.metric, kind.max_new_tokens)
    for name, path in benchmark_files().items():
        settings = UserFile(str(path)).settings
        print(f"{name}\n  {settings.description}\n  file     {path}\n  from     {settings.source}\n")
    print(f"FILE.jsonl\n  {UserFile.card.title}: {UserFile.card.questions}\n  line     {UserFile.card.files[0]}")
    _print_terms(UserFile.card, "exact_match", UserFile.max_new_tokens)


def _print_terms(card: Any, metric: str, max_new_tokens: int) -> None:
    print(f"  from     {card.source}; {card.size}\n  licence  {card.licence}")
    print(f"  protocol {card.protocol} (metric {metric}, up to {max_new_tokens} tokens)\n")
