"""Tiny generators: a CLIP of random weights, pictures of two colours, and runs of a few steps on them."""

import json

import torch

from mllm.checkpoint.dual import image_processor, save_clip
from mllm.generation.codec import PixelCodec
from mllm.generation.denoiser import build_denoiser
from mllm.generation.generator import GeneratorConfig, save_generator
from mllm.generation.kinds import read_kind
from mllm.generation.schedule import build_schedule
from mllm.generation.settings import DenoiserSettings, GenerationSettings, ScheduleSettings
from mllm.generation.text_side import load_text_side
from mllm.model.dual_encoder import assemble_dual, train_tokenizer
from mllm.model.dual_settings import ClipModelSettings
from tests.helpers.tiny import save_image

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "black": (0, 0, 0)}
CAPTIONS = [f"a {name} square" for name in COLOURS]


def write_clip(directory):
    """A `CLIPModel` of width 32 and random weights, whose text side reads 8 tokens."""
    settings = ClipModelSettings(
        image_size_px=16,
        patch_size_px=8,
        vision_width=32,
        vision_layers=1,
        text_width=32,
        text_layers=1,
        embedding_width=16,
        vocabulary_size=300,
        text_length_tokens=8,
    )
    tokenizer = train_tokenizer(CAPTIONS * 4, 300, 8)
    torch.manual_seed(0)
    model = assemble_dual(settings, tokenizer, False)
    save_clip(directory, model, model.state_dict(), tokenizer, image_processor(settings))
    return directory


def write_pairs(root):
    """A picture of each of four colours with two captions, the second without the colour; returns the file of pairs."""
    lines = []
    for name, colour in COLOURS.items():
        save_image(root / f"{name}.png", colour, (16, 16))
        lines += [
            {"image": f"{name}.png", "caption": caption, "source": "squares"}
            for caption in (f"a {name} square", "a square")
        ]
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return root / "pairs.jsonl"


def write_generator(clip, directory, kind="unet", **schedule):
    """A generator of pictures of 16 pixels with random weights, on the text side of `clip`."""
    torch.manual_seed(0)
    text, codec = load_text_side(clip), PixelCodec(16, 4)
    sizes = DenoiserSettings(kind=kind, widths=(16, 32), norm_groups=8, heads=2, dit_width=16, dit_layers=1)
    denoiser = build_denoiser(sizes, *codec.shape[:2], text.width)
    levels = build_schedule(ScheduleSettings(**schedule), is_pixels=True)
    config = GeneratorConfig("text", 16, 4)
    save_generator(directory, config, denoiser, denoiser.state_dict(), text, codec, levels)
    return directory


def values_of(pairs, clip, run_dir, **changes):
    """A configuration of pictures from text; `section__name=value` changes it."""
    values = {
        "kind": "text",
        "run_dir": str(run_dir),
        "pictures": {"image_size_px": 16, "pixel_unshuffle": 4},
        "data": {"pairs": str(pairs), "heldout": str(pairs), "image_root": str(pairs.parent)},
        "text": {"clip": str(clip)},
        "denoiser": {"widths": [16, 32], "norm_groups": 8, "heads": 2},
        "optim": {"lr": 2e-3},
        "train": {"epochs": 2, "global_batch_size": 4, "trackers": []},
        "heldout": {"every_steps": 2, "pictures": 4},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return values


def settings_of(*arguments, **changes) -> GenerationSettings:
    return read_kind(values_of(*arguments, **changes), "test")
