"""Training samples in files."""

import json
from pathlib import Path

import yaml

from tests.helpers.tiny import save_image


def write_recipe(root: Path) -> Path:
    """A dozen samples, some with an image, some without; returns the recipe's file."""
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "gray": (120, 120, 120)}
    for name, colour in colours.items():
        save_image(root / f"{name}.png", colour)
    with open(root / "samples.jsonl", "w") as file:
        for n in range(12):
            name = list(colours)[n % 3]
            has_image = n % 4 != 3
            content = [{"type": "text", "text": "what colour is this " + "very " * (n % 5)}]
            if has_image:
                content.insert(0, {"type": "image"})
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": name + " yes" * (n % 3)}]
            record = {"id": f"s{n}", "messages": messages, "images": [f"{name}.png"] if has_image else []}
            file.write(json.dumps(record) + "\n")
    source = {"path": str(root / "samples.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny", "sources": [source]}))
    return root / "recipe.yaml"
