"""A tiny easy-VQA folder, a tiny captioned Parquet and a word list, and the settings that read them."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from data_recipes.demo.easyvqa import COLORS, SHAPES
from data_recipes.demo.settings import GeneratorSettings
from mllm.settings import validate_settings

CATEGORY_PATHS = ("animals/birds", "food/fruit", "plants/trees", "tools", "signs_and_symbols/flags", "buildings")
TITLES = ("finch", "lime wedge", "old oak", "pliers", "utopia", "hut")


def picture_bytes(number: int, file_format: str) -> bytes:
    """A 24-pixel image, different for every number below 4096, that is wider than tall and mostly blue."""
    image = Image.new("RGB", (24, 24), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((2, 8, 21, 15), fill=(10, 20, 200))
    for bit in range(12):
        if number >> bit & 1:
            image.putpixel((4 + bit, 10), (250, 250, 60))
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def write_easyvqa(root: Path, train_images: int = 24, test_images: int = 8) -> Path:
    """Images of every shape and colour in turn, each asked every yes/no question of two forms and two others."""
    for split, count, first in (("train", train_images, 0), ("test", test_images, 1000)):
        (root / split / "images").mkdir(parents=True)
        rows = []
        for number in range(count):
            shape, color = SHAPES[number % 3], COLORS[number % 8]
            (root / split / "images" / f"{number}.png").write_bytes(picture_bytes(first + number, "PNG"))
            for other in (*SHAPES, *(f"{c} shape" for c in COLORS)):
                holds = other in (shape, f"{color} shape")
                rows.append([f"is there a {other}?", "yes" if holds else "no", number])
                rows.append([f"is no {other} present?", "no" if holds else "yes", number])
            rows.append(["what shape is present?", shape, number])
            rows.append(["what color is the shape?", color, number])
        (root / split / "questions.json").write_text(json.dumps(rows))
    return root


def parquet_row(number: int, split: str, **changes: object) -> dict[str, object]:
    kind = number % len(TITLES)
    row: dict[str, object] = {
        "image": {"bytes": picture_bytes(2000 + number, "PNG"), "path": f"{number:04d}.png"},
        "title": f"{TITLES[kind]} {'abcdefghijklmnopqrstuvwxyz'[number // len(TITLES)]}",
        "description": "",
        "keywords": ["nice thing", "quaint"],
        "category": CATEGORY_PATHS[kind],
        "license": "public domain",
        "split": split,
    }
    return {**row, **changes}


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def tiny_rows() -> list[dict[str, object]]:
    return [parquet_row(n, "train") for n in range(60)] + [parquet_row(n, "test") for n in range(60, 84)]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def demo_config(tmp_path: Path, rows: list[dict[str, object]] | None = None, **changes: object) -> GeneratorSettings:
    """Write the inputs where they are missing, and return settings; keyword arguments replace top-level keys."""
    inputs = tmp_path / "inputs"
    if not inputs.exists():
        write_easyvqa(inputs / "easyvqa")
        (inputs / "words.txt").write_text("apple\nbus\nhen\nwindow\n")
    write_parquet(inputs / "clipart.parquet", rows if rows is not None else tiny_rows())
    values: dict[str, object] = {
        "output": str(tmp_path / "out"),
        "sources": [
            {
                "kind": "easyvqa",
                "path": str(inputs / "easyvqa"),
                "caption_count": 10,
                "yes_no_count": 80,
                "shape_count": 12,
                "color_count": 12,
            },
            {
                "kind": "captioned_parquet",
                "name": "clipart",
                "path": str(inputs / "clipart.parquet"),
                "writes_heldout_questions": True,
                "caption_count": 20,
                "naming_count": 12,
                "category_count": 12,
                "yes_no_count": 40,
                "description_count": 6,
                "conversation_count": 15,
            },
            {
                "kind": "rendered_words",
                "path": str(inputs / "words.txt"),
                "caption_count": 6,
                "reading_count": 12,
                "clip_pair_count": 16,
                "heldout_count": 8,
            },
        ],
    }
    return validate_settings(GeneratorSettings, {**values, **changes}, "test")
