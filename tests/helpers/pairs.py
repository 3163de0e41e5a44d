"""Preference pairs in files, and settings of tiny runs that learn from them."""

import json
from pathlib import Path

import yaml

from mllm.preference.run import train_preference
from mllm.preference.settings import PreferenceSettings
from mllm.settings import validate_settings
from tests.helpers.runs import config
from tests.helpers.tiny import save_image

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "grey": (120, 120, 120)}
LORA = {
    "projector": "frozen",
    "language_model": "lora",
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "vision_encoder": "lora",
    "vision_encoder_lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
}


def pair_records():
    """Ten pairs about three images: several an image, answers of unlike length, a context, weights, another image."""
    names, records = list(COLOURS), []
    for n in range(10):
        name, other = names[n % 3], names[(n + 1) % 3]
        text = "what colour is this" if n % 2 else "is it red"
        record = {
            "id": f"p{n}",
            "images": [f"{name}.png"],
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            "chosen": f"it is {name}" + " yes" * (n % 3),
            "rejected": f"it is {other}" + " no" * (n % 4),
        }
        records.append(record)
    records[3]["context"] = "hello world "
    records[4] |= {"chosen_weights": [[6, 10, 5.0]], "rejected_weights": [[6, 9, 5.0]]}
    records[5]["rejected_images"] = ["red.png"]
    return records


def write_pairs(root: Path, records=None) -> Path:
    """A recipe of pairs and their images; returns its file."""
    root.mkdir(exist_ok=True)
    for name, colour in COLOURS.items():
        save_image(root / f"{name}.png", colour)
    lines = [json.dumps(record) for record in (pair_records() if records is None else records)]
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    source = {"path": str(root / "pairs.jsonl"), "reader": "pairs", "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "pairs", "sources": [source]}))
    return root / "recipe.yaml"


def pair_config(tiny_parts, recipe, run_dir, objective=None, **changes):
    """Settings of a run as a file holds them, of steps of five pairs."""
    values = config(
        tiny_parts,
        recipe,
        run_dir,
        **{"train__global_batch_size": 5, "data__packing": "shared_prefix", "train__trackers": []} | changes,
    )
    return values | {"preference": objective or {}}


def learn(values, stop_after=None):
    """Run here what the settings describe."""
    return train_preference(validate_settings(PreferenceSettings, values, "test"), stop_after)
