"""Learning rates of the sides of a dual encoder, and of their layers."""

import re
from typing import Any

from mllm.contrastive.settings import ClipOptimizerSettings
from mllm.training.optimizer import PartOf, Rated

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_IN_FRONT = (".embeddings.", ".pre_layrnorm.")


def dual_parts(config: Any, optim: ClipOptimizerSettings) -> PartOf:
    """Return the part that a parameter of a dual encoder is rated by, its name known, and its layer's share of that rate.

    The parts are `vision_encoder`, `text_encoder` (each with its projection, which learns at the rate itself) and
    `temperature`. config: the model's, of transformers.
    """
    sides = {
        "vision_encoder": (config.vision_config, optim.layer_decay_vision_encoder),
        "text_encoder": (config.text_config, optim.layer_decay_text_encoder),
    }

    def part_of(name: str) -> Rated:
        part = name.split("_")[0].replace("visual", "vision") + "_encoder"
        if part not in sides:
            return Rated("temperature")
        side, decay = sides[part]
        if decay == 1.0:
            return Rated(part)
        within, depth = _LAYER.search(name), side.num_hidden_layers
        if within:
            return Rated(part, decay ** (depth - int(within[1])))
        return Rated(part, decay ** (depth + 1) if any(piece in name for piece in _IN_FRONT) else 1.0)

    return part_of
