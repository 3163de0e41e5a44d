"""What the demo's encoder knows of ImageNet's classes, as features with words: `projector.word_features` takes the file.

A photograph of each class would tell it, too, but there are none to be had here, and the net's head says the same: which
features it takes for a goldfish. N classes, V width of the features.
"""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from data_recipes.demo.heldout_names import names_in
from data_recipes.demo.packages import package_folder
from data_recipes.demo.picture import decode
from data_recipes.demo.rendered_words import read_words
from mllm.checkpoint.parts import load_vision_model
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer
from mllm.model.encoders import VisionEncoder

FILE = "class_features.safetensors"
HELDOUT = Path("data_recipes/demo/heldout_words.txt")
DRAWINGS = Path("data_recipes/demo/clipart.parquet")
DRAWINGS_SEEN = 256
IMAGE_SIZE_PX = 128  # as in the demo's configs
EPSILON = 1e-3  # of the net's batch norms
STEPS = 80
RATE = 0.1
# Weight of the squared distance from the mean of drawings, in deviations: a class's features stay among theirs.
PRIOR = 0.02
_ENCODED_TOGETHER = 16


def write_class_features(weights: Mapping[str, torch.Tensor], directory: Path, mean: float, deviation: float) -> None:
    """Write `FILE` into the directory of the net, of whose weights `weights` are, as its package names them.

    mean, deviation: of the net's pixels in 0-1. Classes whose names hold one that training must not hear are left out.
    """
    encoder = VisionEncoder(load_vision_model(str(directory), torch.float32, IMAGE_SIZE_PX), -1, "drop", IMAGE_SIZE_PX)
    preparer = ImagePreparer(IMAGE_SIZE_PX, (mean,) * 3, (deviation,) * 3)
    features = class_features(weights, *_middle_and_spread(encoder.eval(), preparer))
    names, held = _class_names(), read_words(HELDOUT)
    kept = [number for number, text in enumerate(names) if not names_in(held, [text])]
    words = [names[number].lower() for number in kept]
    save_file({"features": features[kept]}, directory / FILE, {"words": json.dumps(words)})


def class_features(weights: Mapping[str, torch.Tensor], middle: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Return for each class features that the net's head takes for it, [N, V], near those that drawings have.

    middle, spread: mean and deviation of the features of drawings, [V] each. Found by gradient descent from the middle.
    """
    scale = weights["_bn1.weight"] / (weights["_bn1.running_var"] + EPSILON).sqrt()
    shift = weights["_bn1.bias"] - weights["_bn1.running_mean"] * scale
    inward = weights["_conv_head.weight"].flatten(1)
    outward, bias = weights["_fc.weight"], weights["_fc.bias"]
    classes = torch.arange(len(bias))
    away = (0.3 * torch.randn(len(bias), len(middle), generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.Adam([away], lr=RATE)
    for _ in range(STEPS):
        hidden = ((middle + spread * away) @ inward.T * scale + shift).clamp(0, 6)
        loss = cross_entropy(hidden @ outward.T + bias, classes, reduction="sum") + PRIOR * away.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (middle + spread * away).detach()


@torch.no_grad()
def _middle_and_spread(encoder: VisionEncoder, preparer: ImagePreparer) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the features, and deviation of the mean features, of some drawings that training may see; [V] each."""
    rows = pyarrow.parquet.read_table(DRAWINGS, columns=["image", "split"]).to_pylist()
    files = [row["image"] for row in rows if row["split"] == "train"]
    shown = files[:: max(1, len(files) // DRAWINGS_SEEN)]
    tiles = torch.stack([preparer(decode(file["bytes"], f"{DRAWINGS}, image {file['path']}")) for file in shown])
    features = torch.cat([encoder(part) for part in tiles.split(_ENCODED_TOGETHER)])
    return features.mean((0, 1)), features.mean(1).std(0)


def _class_names() -> list[str]:
    """The names of ImageNet's classes that open_clip asks with, read without importing it. Raises UserError without it."""
    folder = package_folder("open_clip")
    path = folder / "zero_shot_metadata.py" if folder else None
    if path is None or not path.is_file():
        raise UserError(
            "the names of ImageNet's classes come with open_clip: run `pip install --no-deps open_clip_torch`"
        )
    return [str(name) for name in runpy.run_path(str(path))["IMAGENET_CLASSNAMES"]]
