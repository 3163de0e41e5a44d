"""Training runs of tiny models: their settings, and what they leave behind."""

import json
from pathlib import Path

from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings

ROOT = Path(__file__).parents[2]


def config(tiny_parts, recipe, run_dir, **changes):
    """Settings as a file holds them; `section__key=value` changes one."""
    values = {
        "run_dir": str(run_dir),
        "model": {
            "vision_encoder": {"path": str(tiny_parts / "clip")},
            "language_model": {"path": str(tiny_parts / "lm")},
            "prompt_format": "chatml",
        },
        "trainable": {"language_model": "full", "vision_encoder": "full"},
        "data": {"recipe": str(recipe), "max_length_tokens": 128, "packing": "none"},
        "optim": {"lr": 1e-3, "max_grad_norm": 0.5},
        "train": {"global_batch_size": 4, "micro_batch_size": 1, "epochs": 2},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return values


def series(run_dir):
    """(step, sample ids), loss and gradient norm of every step."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return (
        [(line["step"], line["sample_ids"]) for line in lines],
        [line["loss"] for line in lines],
        [line["grad_norm"] for line in lines],
    )


def run_here(values):
    return finetune(validate_settings(FinetuneSettings, values, "test"))


def skipped_ids(run_dir):
    return sorted(json.loads(line)["id"] for line in (run_dir / "skipped.jsonl").read_text().splitlines())


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def second_stage(tiny_parts, recipe, tmp_path):
    """Settings of a run that goes on from the run `one`, in another prompt format."""
    values = config(tiny_parts, recipe, tmp_path / "two")
    values["data"]["max_length_tokens"] = 256
    values["model"] = {"init_from": str(tmp_path / "one" / "final"), "prompt_format": "vicuna_v1"}
    return validate_settings(FinetuneSettings, values, "test")
