"""`mllm import`: a Hugging Face LLaVA directory as a model directory of ours."""

import argparse
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Convert a Hugging Face LLaVA directory to a model directory of ours, which training can begin with.",
        "mllm import llava-1.5-7b-hf runs/llava15 --prompt-format vicuna_v1 --fit pad",
    )
    parser.add_argument("source", type=expanded, help="A LLaVA directory in safetensors, or a hub id.")
    parser.add_argument("out", type=expanded, help="The directory to write.")
    parser.add_argument(
        "--prompt-format", help="The prompt format it was trained with. Its chat template says which, by default."
    )
    parser.add_argument(
        "--fit",
        choices=["pad", "crop", "stretch"],
        help="How images become square, as in its training. Its image processor says how, by default.",
    )
    parser.add_argument(
        "--box-format",
        help="How it was trained to write places in images, such as qwen_vl (default: as our export says, else llava).",
    )


def run(options: argparse.Namespace) -> None:
    from mllm.checkpoint.llava import import_llava
    from mllm.checkpoint.parts import local_directory

    source = local_directory(options.source)
    import_llava(source, Path(options.out), options.prompt_format, options.fit, options.box_format)
    print(f"saved {options.out}")
