"""`mllm chat`: talk to a model in the terminal."""

import argparse
from pathlib import Path

from mllm.commands.arguments import add_abstaining, add_model, describe, load_confidence, load_model, picture
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Talk to a model in the terminal, or ask it the questions given by -p and leave. /help lists what can be typed.",
        "mllm chat runs/demo/stage2 --image cat.png",
        "mllm chat runs/demo/stage2 --image cat.png -p 'What is this?' --json",
    )
    add_model(parser)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=expanded,
        metavar="PATH|URL",
        help="An image that goes with the first question. Repeatable.",
    )
    parser.add_argument(
        "--video",
        action="append",
        default=[],
        type=expanded,
        metavar="PATH",
        help="A video, or a folder of its frames, that goes with the first question, behind its images. Repeatable.",
    )
    parser.add_argument(
        "-p",
        "--prompt",
        action="append",
        default=[],
        help="Ask this, print the answer and leave; - reads all of stdin. Repeatable: each is one more turn.",
    )
    parser.add_argument(
        "--picture",
        type=picture,
        default=Path("boxes.png"),
        metavar="FILE",
        help="The picture that is written where an answer names places in an image: the image with them drawn on it. A "
        "number is put behind the name of one that is there (default: %(default)s).",
    )
    parser.add_argument("--json", action="store_true", help="Print each answer as a line of JSON.")
    parser.add_argument("--system", help="A system prompt. None by default.")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="Number of tokens that an answer has at most (default: %(default)s).",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="Temperature of sampling; 0 always takes the likeliest token (default: %(default)s).",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="Sample from the fewest tokens whose probabilities sum to this (default: %(default)s, all tokens).",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="End an answer before this text. Repeatable."
    )
    parser.add_argument("--seed", type=int, help="Seed of sampling. Each start samples anew by default.")
    add_abstaining(parser, "answers then come whole")


def run(options: argparse.Namespace) -> None:
    import torch

    from mllm.inference.chat import ChatSession
    from mllm.inference.terminal import chat_in_terminal, chat_script

    confidence = load_confidence(options)
    model, processor = load_model(options)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    session = ChatSession(
        model,
        processor,
        options.system,
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.stop,
        confidence,
    )
    if options.prompt:
        chat_script(session, options.prompt, options.image, options.json, options.video, options.picture)
    else:
        chat_in_terminal(session, options.image, options.json, options.video, options.picture)
