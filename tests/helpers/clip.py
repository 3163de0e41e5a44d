"""Contrastive runs of tiny models on pairs of four colours."""

import json

from mllm.contrastive.run import _build_batcher, train_clip
from mllm.contrastive.settings import ContrastiveSettings
from mllm.settings import validate_settings
from tests.helpers.tiny import save_image

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "black": (0, 0, 0)}


def write_pairs(root, folder=""):
    """Sixteen pairs of four colours, whose images lie in `folder`; returns their file."""
    lines = []
    for name, colour in COLOURS.items():
        save_image(root / f"{folder}{name}.png", colour, (16, 16))
        lines += [{"image": f"{folder}{name}.png", "caption": f"a {name} square"}] * 4
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return root / "pairs.jsonl"


def settings(pairs, run_dir, epochs):
    model = {"image_size_px": 16, "patch_size_px": 8, "vision_width": 64, "vision_layers": 1, "text_width": 64}
    model |= {"text_layers": 1, "embedding_width": 16, "vocabulary_size": 300, "text_length_tokens": 12}
    values = {
        "run_dir": str(run_dir),
        "model": model,
        "data": {"pairs": str(pairs), "heldout": str(pairs), "image_root": str(pairs.parent)},
        "optim": {"lr": 3e-3},
        "train": {"epochs": epochs, "global_batch_size": 8},
    }
    return validate_settings(ContrastiveSettings, values, "test")


def values_of(pairs, run_dir, **changes):
    values = settings(pairs, run_dir, epochs=2).model_dump(exclude_unset=True)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return values


def batcher_of(pairs, run_dir, **changes):
    """What makes the batches of a run with these changes."""
    return _build_batcher(validate_settings(ContrastiveSettings, values_of(pairs, run_dir, **changes), "test"))[0]


def train(values):
    return train_clip(validate_settings(ContrastiveSettings, values, "test"))


def train_on_colours(root):
    """A run in `root/run` that tells four colours apart, whose images are in `root/images`; returns the root."""
    (root / "images").mkdir()
    values = settings(write_pairs(root, "images/"), root / "run", epochs=25).model_dump(exclude_unset=True)
    values["model"]["text_length_tokens"] = 48
    train(values)
    return root
