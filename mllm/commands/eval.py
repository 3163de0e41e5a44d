"""`mllm eval`: a model's scores on benchmarks."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from mllm.clients.openai import PREFIX, MaxTokensName, Sampling
from mllm.commands.arguments import A_MODEL, add_confidence, add_dtype, add_one, at_least_1, describe, one_of
from mllm.errors import UserError
from mllm.evaluation.conditions import ALL_CONDITIONS, CONDITIONS, CONTRASTS
from mllm.launch import launched_rank
from mllm.settings import expanded_benchmark, expanded_path


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Score a model on benchmarks, beside the same questions with the image withheld and swapped, and write a report.",
        "mllm eval runs/demo/stage2 --benchmarks easyvqa,clipart --limit 200",
        "mllm eval runs/demo/stage2 --benchmarks questions.jsonl:vqa",
        "mllm eval openai:gpt-4o --base-url https://api.openai.com/v1 --benchmarks pope --data data --output runs/gpt-4o",
        "torchrun --nproc_per_node 8 -m mllm eval runs/demo/stage2 --benchmarks pope --data data",
        "mllm eval --list",
    )
    add_one(parser, "model", f"{A_MODEL}, or openai:NAME for a model behind an endpoint.")
    _add_benchmarks(parser)
    _add_asking(parser)
    _add_endpoint(parser)


def _add_benchmarks(parser: argparse.ArgumentParser) -> None:
    add_questions(parser)
    parser.add_argument("--list", action="store_true", help="List the benchmarks, and say where to get them.")
    parser.add_argument(
        "--output",
        type=expanded_path,
        metavar="DIR",
        help="Directory for results.json, answers.jsonl and report.html. MODEL/eval by default.",
    )


def add_questions(parser: "argparse._ActionsContainer") -> None:
    """Which questions are asked; `benchmark_names` reads the first."""
    parser.add_argument(
        "--benchmarks",
        help="Names of benchmarks, with commas between. NAME@SOURCE is read from a data set of the hub (its id, or a copy "
        "of its files); FILE.jsonl, FILE.jsonl:METRIC or FILE.yaml are your own questions.",
    )
    parser.add_argument(
        "--data",
        type=expanded_path,
        metavar="DIR",
        help="Directory where the benchmarks' files lie. By default the one that a benchmark's own file names.",
    )
    parser.add_argument(
        "--limit",
        type=at_least_1,
        metavar="N",
        help="Number of questions of each benchmark. By default the benchmark's own number, which is mostly all.",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="Seed of all that is drawn: which questions are asked, which images are swapped or fitted on, and the "
        "intervals (default: %(default)s).",
    )
    parser.add_argument(
        "--on-missing",
        choices=["error", "skip"],
        default="error",
        help="What to do about questions whose image isn't there: error ends before anything is asked, skip lists and "
        "leaves them out (default: %(default)s).",
    )


def add_answering(parser: "argparse._ActionsContainer") -> None:
    """How a model that is loaded here answers."""
    parser.add_argument(
        "--batch-size",
        type=at_least_1,
        default=32,
        metavar="N",
        help="Number of questions that are answered together (default: %(default)s).",
    )
    add_dtype(parser)
    parser.add_argument("--device", help="Device such as cpu or cuda:0. This process's GPU if there is one by default.")
    parser.add_argument(
        "--choice-by",
        choices=["generation", "likelihood"],
        default="generation",
        help="How multiple choice is answered: by what the model writes, or by the likeliest of the options "
        "(default: %(default)s).",
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    add_answering(parser)
    parser.add_argument(
        "--conditions",
        type=conditions,
        default=",".join(CONDITIONS),
        metavar="NAMES",
        help="What is shown with the questions, with commas between: their own images and videos (model), none (withheld), "
        "another question's (swapped), the first of several alone (single), a video's frames in another order "
        "(shuffled), images blurred (blurred), in shades of grey (grey) or mirrored with left and right exchanged in the "
        "words (mirrored), an order to give a wrong answer written into them (injected), or its strokes in disorder "
        "(scrawled) (default: %(default)s).",
    )
    parser.add_argument(
        "--injection-size",
        type=share,
        default=0.08,
        metavar="SHARE",
        help="Height of a line that injected writes, as a share of the image's height, to 0.5 (default: %(default)s).",
    )
    parser.add_argument(
        "--injection-contrast",
        type=share,
        default=1.0,
        metavar="SHARE",
        help="Contrast of what injected writes: 1 is black or white, less lets as much of the image through "
        "(default: %(default)s).",
    )
    _add_contrast(parser)
    add_confidence(parser, "answers.jsonl gets both, and the report says what is left")


def _add_contrast(parser: argparse.ArgumentParser) -> None:
    contrast = parser.add_argument_group("contrast decoding, which is asked beside the model's own greedy answers")
    contrast.add_argument(
        "--contrast",
        choices=["noise", "no_image", "instruction"],
        help="Also answer by logits that are contrasted with those of a rival conversation: with noisy images (noise), "
        "without images (no_image), or under a confusing instruction (instruction). Adds the conditions contrasted and "
        "contrast_0. None by default.",
    )
    contrast.add_argument(
        "--contrast-alpha",
        type=strength,
        default=1.0,
        metavar="ALPHA",
        help="Strength of the contrast: logits become (1 + ALPHA) times the model's less ALPHA times the rival's "
        "(default: %(default)s).",
    )
    contrast.add_argument(
        "--contrast-beta",
        type=strength,
        default=0.1,
        metavar="BETA",
        help="Tokens less likely than BETA times the likeliest are never chosen, to 1 (default: %(default)s).",
    )
    contrast.add_argument(
        "--contrast-decay",
        type=strength,
        metavar="RATE",
        help="Let the strength grow from 0 as e^(RATE t) - 1 over the tokens t of an answer, in place of ALPHA, as M3ID does "
        "with 0.02. A constant strength by default.",
    )


def strength(text: str) -> float:
    """Parse a number from 0 on; argparse shows the ValueError as one line."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def _contrast(options: argparse.Namespace) -> Any:
    if options.contrast is None:
        return None
    from mllm.inference.contrast import Contrast

    return Contrast(options.contrast, options.contrast_alpha, options.contrast_beta, options.contrast_decay)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    endpoint = parser.add_argument_group("settings of an endpoint, for a MODEL openai:NAME")
    endpoint.add_argument("--base-url", metavar="URL", help="Address of the OpenAI-compatible endpoint.")
    endpoint.add_argument(
        "--concurrency",
        type=at_least_1,
        default=8,
        metavar="N",
        help="Number of requests under way at a time (default: %(default)s).",
    )
    endpoint.add_argument(
        "--max-tokens-name",
        choices=get_args(MaxTokensName),
        default="max_tokens",
        help="What the endpoint calls the limit of an answer's tokens; newer models of OpenAI want the second "
        "(default: %(default)s).",
    )
    endpoint.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        help="Temperature of sampling; null leaves it out, for models that refuse 0, whose answers may then vary "
        "(default: %(default)s).",
    )
    endpoint.add_argument(
        "--thinking-tokens",
        type=int,
        default=0,
        metavar="N",
        help="Number of tokens that an answer may have beyond a benchmark's limit, for models whose reasoning counts "
        "(default: %(default)s).",
    )


def temperature(text: str) -> float | None:
    """Parse a temperature, or None for `null`; argparse shows the ValueError as one line."""
    value = None if text == "null" else float(text)
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


def share(text: str) -> float:
    """Parse a number above 0 and at most 1; argparse shows the ValueError as one line."""
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def conditions(text: str) -> tuple[str, ...]:
    """Parse names of conditions; argparse shows the ArgumentTypeError as one line."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = next((name for name in names if name not in ALL_CONDITIONS), None)
    if unknown is not None or not names:
        raise argparse.ArgumentTypeError(f"{unknown or 'nothing'!r}; choose from {', '.join(ALL_CONDITIONS)}")
    return names


def run(options: argparse.Namespace) -> None:
    """Raises UserError when model or benchmarks are missing, unknown or not on disk."""
    options.model = one_of(options, "model")
    if options.list:
        list_benchmarks()
        return
    if not options.model or not options.benchmarks:
        raise UserError("give a model and --benchmarks, or --list to see which benchmarks there are")

    from mllm.evaluation.injection import Injection
    from mllm.evaluation.plan import Setup
    from mllm.evaluation.results import print_scores
    from mllm.evaluation.run import evaluate_subject

    setup = Setup(
        benchmark_names(options.benchmarks),
        options.data,
        _output(options),
        options.limit,
        options.seed,
        options.on_missing,
        options.choice_by,
        (*options.conditions, *(c for c in CONTRASTS if options.contrast and c not in options.conditions)),
        Injection(options.injection_size, options.injection_contrast),
        options.calibration,
        options.min_confidence,
        _contrast(options),
    )
    outcome = evaluate_subject(setup, _subject(options))
    if launched_rank() == 0:
        print_scores(outcome.scores)


def benchmark_names(text: str) -> list[str]:
    """The benchmarks that `--benchmarks` names. Raises UserError for none, and for one that there isn't."""
    from mllm.evaluation.benchmarks import find_benchmark

    names = [expanded_benchmark(name.strip()) for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--benchmarks {text!r} names none; `mllm eval --list` says which there are")
    for name in names:
        find_benchmark(name)
    return names


def _subject(options: argparse.Namespace) -> Callable[[], Any]:
    """What opens the model that the options name: `openai:NAME` at `--base-url`, or one to be loaded."""
    from mllm.evaluation.subjects.endpoint import Endpoint
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
        _print_terms(kind.card, kind.metric, None if kind.measures else kind.max_new_tokens)
    for name, path in benchmark_files().items():
        settings = UserFile(str(path)).settings
        print(f"{name}\n  {settings.description}\n  file     {path}\n  from     {settings.source}\n")
    print(f"FILE.jsonl\n  {UserFile.card.title}: {UserFile.card.questions}\n  line     {UserFile.card.files[0]}")
    _print_terms(UserFile.card, "exact_match", UserFile.max_new_tokens)


def _print_terms(card: Any, metric: str, max_new_tokens: int | None) -> None:
    print(f"  from     {card.source}; {card.size}\n  licence  {card.licence}")
    length = "" if max_new_tokens is None else f", up to {max_new_tokens} tokens"
    print(f"  protocol {card.protocol} (metric {metric}{length})\n")
