"""`mllm serve`: a model behind OpenAI's API, with a page to chat on."""

import argparse
import os
from pathlib import Path

from mllm.commands.arguments import add_abstaining, add_model, describe, load_confidence, load_model
from mllm.errors import UserError

# Options that a generator has no use for.
OF_WORDS = ("quantize", "prompt_format", "box_format", "calibration", "min_confidence", "cors_origin")


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Serve a model by OpenAI's chat completions API, with a page to chat on and figures at /metrics. Requests that come "
        "together are answered together. A generator of pictures is served by /v1/images/generations.",
        "mllm serve runs/demo/stage2 --port 8000",
        "mllm serve runs/demo/diffusion --port 8001",
    )
    add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on (default: %(default)s, this machine alone)."
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="Port to listen on; 0 takes any that is free (default: %(default)s)."
    )
    parser.add_argument("--name", help="Name of the model for clients. Its last folder by default.")
    parser.add_argument(
        "--api-key", help="Key that clients must send. MLLM_API_KEY in the environment does the same and stays hidden."
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="Number of tokens of an answer at most, where a request doesn't say (default: %(default)s).",
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        default=32,
        metavar="N",
        help="Number of answers that are computed together (default: %(default)s).",
    )
    parser.add_argument(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="Number of requests that may wait; more are answered with 429 (default: %(default)s).",
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="Seconds that a request may take, waiting included (default: %(default)s).",
    )
    parser.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="Fetch images by their URLs, except from private addresses.",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="Let pages of this origin use the API in a browser, such as http://localhost:3000; * lets every page. "
        "Repeatable.",
    )
    add_abstaining(parser, "answers then come whole, also in streams")


def run(options: argparse.Namespace) -> None:
    try:
        from mllm.generation.layout import is_generator
        from mllm.inference.serve.app import ServerSettings
        from mllm.inference.serve.listening import bind, serve
    except ImportError as error:
        raise UserError(f"mllm serve needs {error.name}; install the extra: pip install 'mllm[serve]'") from None
    if is_generator(options.model):
        return _serve_pictures(options)
    settings = ServerSettings(
        name=options.name or Path(options.model).resolve().name,
        max_new_tokens=options.max_new_tokens,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        timeout_s=options.timeout_s,
        allow_remote_images=options.allow_remote_images,
        api_key=options.api_key or os.environ.get("MLLM_API_KEY") or None,
        cors_origins=tuple(options.cors_origin),
        confidence=load_confidence(options),
    )
    listener = bind(options.host, options.port)
    model, processor = load_model(options)
    serve(model, processor, settings, listener)


def _serve_pictures(options: argparse.Namespace) -> None:
    """Serve a generator. Raises UserError for options that are for what answers in words."""
    for name in OF_WORDS:
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} is for models that answer in words, and {options.model} draws")
    from mllm.generation.extra import check_diffusers
    from mllm.inference.serve.listening import bind, run_app

    check_diffusers()
    from mllm.generation.opening import load_drawer
    from mllm.generation.serve import PictureServerSettings, build_picture_app

    settings = PictureServerSettings(
        name=options.name or Path(options.model).resolve().name,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        timeout_s=options.timeout_s,
        api_key=options.api_key or os.environ.get("MLLM_API_KEY") or None,
    )
    listener = bind(options.host, options.port)
    generator = load_drawer(options.model, device=options.device, dtype=options.dtype)
    app = build_picture_app(generator, settings)
    run_app(app, settings.name, settings.api_key, "pictures by /v1/images/generations", listener)
