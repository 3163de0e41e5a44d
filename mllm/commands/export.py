"""`mllm export`: a model in another layout."""

import argparse
from pathlib import Path

from mllm.commands.arguments import A_MODEL, describe
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Write a model in another layout, for transformers, vLLM or llama.cpp, or as one directory of ours.",
        "mllm export runs/llava/stage2 exported --layout hf",
    )
    parser.add_argument("model", type=expanded, help=f"{A_MODEL}.")
    parser.add_argument("out", type=expanded, help="The directory to write.")
    parser.add_argument(
        "--layout",
        choices=["hf", "gguf", "mllm", "peft"],
        default="hf",
        help="The layout: hf is LlavaForConditionalGeneration; gguf is that, llama.cpp's mmproj.gguf and Ollama's Modelfile; "
        "mllm is ours; peft is the adapter of a run with LoRA, of whichever kind of model (default: %(default)s).",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="Data type of the weights (default: %(default)s).",
    )
    parser.add_argument(
        "--base",
        type=expanded,
        help="The directory or hub id of transformers that a peft adapter is for (default: what the run began with).",
    )
    merging = parser.add_mutually_exclusive_group()
    merging.add_argument(
        "--merge-lora", action="store_true", help="Merge low-rank updates in layout mllm; the others always merge them."
    )
    merging.add_argument(
        "--without-lora", action="store_true", help="Leave low-rank updates out: the base that an adapter is for."
    )


def run(options: argparse.Namespace) -> None:
    from mllm.checkpoint.export import export

    export(
        options.model,
        Path(options.out),
        options.layout,
        options.dtype,
        options.merge_lora,
        base=options.base,
        without_lora=options.without_lora,
    )
    print(f"saved {options.out}")
