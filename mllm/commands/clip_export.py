"""`mllm clip export`: a dual encoder in another layout."""

import argparse
from pathlib import Path
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part
from mllm.settings import expanded


def add_export(parts: Any) -> None:
    export = add_part(
        parts,
        "export",
        _export,
        "Write a dual encoder as a directory of transformers or of open_clip. It reads weights that are a pickle, too (.bin, "
        ".pt), without running what is in them.",
        "mllm clip export data_recipes/demo/clip runs/demo/open_clip --layout open_clip",
    )
    export.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    export.add_argument("out", type=expanded, help="The directory to write.")
    export.add_argument(
        "--layout",
        choices=["transformers", "open_clip"],
        default="transformers",
        help="The layout: transformers is the model's class with safetensors, which also a multimodal LLM takes as its "
        "vision encoder; open_clip is of a CLIPModel alone, for its local-dir: (default: %(default)s).",
    )


def _export(options: argparse.Namespace) -> None:
    from mllm.checkpoint.dual_export import export_dual

    export_dual(options.model, Path(options.out), options.layout)
    print(f"saved {options.out}")
