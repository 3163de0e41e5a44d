"""`mllm schema`: the JSON schemas of config files."""

import argparse
import json
from importlib import import_module

from mllm.commands.arguments import describe

# What a config is for → module and class of its settings.
KINDS = {
    "train": ("mllm.finetune.settings", "FinetuneSettings"),
    "preference": ("mllm.preference.settings", "PreferenceSettings"),
    "grpo": ("mllm.grpo.settings", "GrpoSettings"),
    "improve": ("mllm.improve.settings", "ImproveSettings"),
    "clip": ("mllm.contrastive.settings", "ContrastiveSettings"),
    "generate": ("mllm.generation.settings", "DiffusionSettings"),
    "autoencoder": ("mllm.generation.settings", "AutoencoderSettings"),
    "prior": ("mllm.generation.unclip_settings", "PriorSettings"),
    "decoder": ("mllm.generation.unclip_settings", "DecoderSettings"),
    "retrieval": ("mllm.generation.unclip_settings", "RetrievalSettings"),
    "recipe": ("mllm.data.recipe", "RecipeSettings"),
    "synth": ("mllm.synthesis.settings", "InstructionConfig"),
}


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Print the JSON schema of a kind of config file, with a description of every setting. Editors complete and check "
        "YAML by it.",
        "mllm schema train > train.schema.json",
        "mllm schema recipe > recipe.schema.json",
    )
    parser.add_argument(
        "kind",
        nargs="?",
        choices=list(KINDS),
        default="train",
        help="The kind of config: of mllm train (with preference: preference, with rewards: grpo), of mllm improve, of mllm "
        "clip train, of mllm generate train (or of its kinds autoencoder, prior, decoder, retrieval), a data recipe, or of "
        "mllm synth (default: %(default)s).",
    )


def run(options: argparse.Namespace) -> None:
    module, name = KINDS[options.kind]
    print(json.dumps(getattr(import_module(module), name).model_json_schema(), indent=2, ensure_ascii=False))
