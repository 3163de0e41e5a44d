"""Images with facts, and settings of a run about them."""

import json
from pathlib import Path

from mllm.settings import validate_settings
from mllm.synthesis.settings import InstructionConfig
from tests.helpers.demo_inputs import picture_bytes

PROMPTS = Path(__file__).parents[2] / "data_recipes" / "prompts"
NO_IMAGES = ("bad_image", "duplicate_image", "evaluation_image")


def fact_records(count: int) -> list[dict]:
    return [
        {
            "id": f"r{n}",
            "image": f"{n}.png",
            "captions": [f"A dog number {n} sits beside a car.", "An animal near a vehicle."],
            "boxes": [
                {"category": "dog", "box": [2, 8, 9, 15]},
                {"category": "car", "box": [12, 8, 21, 15]},
            ],
            "ocr": [f"PLATE {n}"],
        }
        for n in range(count)
    ]


def make_run(tmp_path: Path, records: list[dict], output: str = "out", **changes: object) -> InstructionConfig:
    """Settings; images of the records are written where they are missing."""
    for n, record in enumerate(records):
        path = tmp_path / str(record.get("image", "none.png"))
        if not path.exists() and path.resolve().is_relative_to(tmp_path.resolve()):
            path.write_bytes(picture_bytes(n, "PNG"))
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    values: dict[str, object] = {
        "output": str(tmp_path / output),
        "backend": {"kind": "template"},
        "inputs": [{"name": "street", "path": str(tmp_path / "facts.jsonl"), "image_root": str(tmp_path)}],
        "kinds": {"conversation": 1},
        "prompts": str(PROMPTS),
        "filters": {"skip": list(NO_IMAGES)},
    }
    return validate_settings(InstructionConfig, {**values, **changes}, "test")


def openai_backend(url: str, **changes: object) -> dict[str, object]:
    fast = {"concurrency": 6, "timeout_s": 0.6, "backoff_s": 0.01, "backoff_max_s": 0.03, "attempts": 10}
    return {"kind": "openai", "model": "m", "base_url": url, **fast, **changes}
