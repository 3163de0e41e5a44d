"""A tiny CLIP, images of four colours, and settings of tiny runs of priors, decoders and cues over them."""

import json
from pathlib import Path

import torch

from mllm.checkpoint.dual import image_processor, save_clip
from mllm.model.dual_encoder import assemble_dual, train_tokenizer
from mllm.model.dual_settings import ClipModelSettings
from tests.helpers.tiny import save_image

COLOURS = {"red": (190, 60, 60), "blue": (60, 60, 190), "green": (60, 150, 60), "black": (50, 50, 50)}
WIDTH = 32
CAPTIONS = [f"a {name} square" for name in COLOURS]


def write_colours(root: Path) -> Path:
    """Images of four colours in `images/`, two of each, and pairs of them; returns the file of pairs."""
    (root / "images").mkdir()
    lines = []
    for name, colour in COLOURS.items():
        for shade in (0, 40):
            file = f"images/{name}{shade}.png"
            save_image(root / file, tuple(min(255, part + shade) for part in colour), (16, 16))
            lines.append({"image": file, "caption": f"a {name} square"})
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return root / "pairs.jsonl"


def write_clip(directory: Path, seed: int = 0, text_width: int = WIDTH) -> Path:
    """A CLIP of random weights, whose text states and embeddings are 32 wide unless asked otherwise."""
    torch.manual_seed(seed)
    sizes = {"image_size_px": 16, "patch_size_px": 8, "vision_width": 32, "vision_layers": 1, "text_layers": 1}
    sizes |= {"text_width": text_width, "embedding_width": WIDTH, "vocabulary_size": 300, "text_length_tokens": 24}
    settings = ClipModelSettings(**sizes)
    tokenizer = train_tokenizer(CAPTIONS, settings.vocabulary_size, settings.text_length_tokens)
    model = assemble_dual(settings, tokenizer, learns_bias=False)
    save_clip(directory, model, model.state_dict(), tokenizer, image_processor(settings))
    return directory


def run_values(kind: str, pairs: Path, clip: Path, run_dir: Path, **more) -> dict:
    """Settings of a run of two epochs of two steps, as a file has them."""
    values = {
        "kind": kind,
        "run_dir": str(run_dir),
        "data": {"pairs": str(pairs), "image_root": str(pairs.parent)},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 2, "global_batch_size": 4, "trackers": []},
    }
    if kind == "retrieval":
        values["clip"] = str(clip)
    else:
        values["text"] = {"clip": str(clip), "length_tokens": 16}
    if kind == "prior":
        values["network"] = {"layers": 1, "heads": 2, "head_width": 16}
    else:
        values["pictures"] = {"image_size_px": 16, "pixel_unshuffle": 4}
        values["denoiser"] = {"widths": [16, 16], "norm_groups": 8, "heads": 2}
    return values | more
