"""Encoders of other families, at other sizes, and two at once, spread over ranks: they train as one process does."""

import json

import pytest
import torch
import yaml

from mllm.checkpoint.ours import load
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings
from tests.helpers.encoders import save_tiny_encoder
from tests.helpers.launches import launch_runs
from tests.helpers.runs import ROOT, config, series
from tests.helpers.tiny import save_image

# name → the first encoder, the second, the side of tiles, and the engine.
CASES = {
    "larger": ("clip", None, 24, "deepspeed"),
    "registers": ("dinov3", None, 24, "deepspeed"),
    "interpolated": ("internvit", None, 24, "fsdp"),
    "both": ("dinov2_with_registers", "siglip", 24, "deepspeed"),
    "both_fsdp": ("mlcd", "aimv2_native", 24, "fsdp"),
}


@pytest.fixture
def recipe_of_three(tmp_path):
    """Samples of which the last has no image, so that one of two ranks has a blank one."""
    save_image(tmp_path / "red.png", (255, 0, 0), (40, 30))
    with open(tmp_path / "samples.jsonl", "w") as file:
        for n in range(3):
            content = [*({"type": "image"} for _ in range(n < 2)), {"type": "text", "text": "what is this"}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red " * (n + 1)}]
            images = ["red.png"] * (n < 2)
            file.write(json.dumps({"id": f"s{n}", "messages": messages, "images": images}) + "\n")
    source = {"path": str(tmp_path / "samples.jsonl"), "image_root": str(tmp_path)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "three", "sources": [source]}))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_encoders_spread_over_ranks_train_as_in_one_process(tiny_parts, recipe_of_three, tmp_path):
    ds_config = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(ds_config))
    engines = {"deepspeed": {"kind": "deepspeed", "ds_config": str(tmp_path / "zero3.json")}, "fsdp": {"kind": "fsdp"}}

    def values(name, run_dir):
        first, second, side, _ = CASES[name]
        own = config(tiny_parts, recipe_of_three, run_dir)
        encoder = {"path": save_tiny_encoder(tmp_path, first), "image_size_px": side}
        if second:
            encoder["second"] = {"path": save_tiny_encoder(tmp_path, second)}
        own["model"]["vision_encoder"] = encoder
        own["train"] |= {"global_batch_size": 3, "epochs": 2, "trackers": [], "gradient_checkpointing": True}
        own["optim"]["layer_decay_vision_encoder"] = 0.5
        return own

    launch_runs([(values(n, tmp_path / n) | {"engine": engines[CASES[n][3]]}, None) for n in CASES], tmp_path)
    for name in CASES:
        finetune(validate_settings(FinetuneSettings, values(name, tmp_path / f"one_{name}"), "test"))
        (ids, losses, norms), (own_ids, own_losses, own_norms) = (series(tmp_path / n) for n in (f"one_{name}", name))
        assert own_ids == ids and len(ids) == 2, name
        assert own_losses == pytest.approx(losses, rel=1e-5) and own_norms == pytest.approx(norms, rel=1e-4), name
        ends = [load(tmp_path / n / "final")[0].state_dict() for n in (f"one_{name}", name)]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.allclose(t, ends[1][n], atol=1e-4) for n, t in ends[0].items()), name
