"""Runs of models of transformers: over ranks, stopped and resumed, they train as one process does."""

import json

import pytest
import torch
import yaml

import mllm
from mllm.checkpoint import public
from mllm.checkpoint.export import export
from mllm.model.public import wrap
from tests.helpers.launches import launch_runs
from tests.helpers.public_models import tiny
from tests.helpers.runs import ROOT, run_here, series
from tests.helpers.tiny import save_image

pytestmark = pytest.mark.slow

FULL = {"language_model": "full", "projector": "full", "vision_encoder": "full"}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
POLICIES = {
    "full": FULL,
    "adapted": {"language_model": "lora", "vision_encoder": "lora", "lora": LORA, "vision_encoder_lora": LORA},
    "qlora": {"language_model": "qlora", "projector": "full", "lora": LORA},
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """By name, the directory of a model."""
    root = tmp_path_factory.mktemp("peers")
    for name in ("rows_and_columns", "several_axes"):
        model, processor = wrap(*tiny(name))
        public.write(root / name, model, processor, model.state_dict())
    return root


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Steps of three samples, of which some have no image: a rank has micro-batches without one, or without targets."""
    root = tmp_path_factory.mktemp("uneven")
    save_image(root / "red.png", (255, 0, 0), (40, 40))
    save_image(root / "blue.png", (0, 0, 255), (70, 20))
    with open(root / "samples.jsonl", "w") as file:
        for n, images in enumerate([["red.png"], [], ["red.png"], ["blue.png", "red.png"], [], [], ["blue.png"]]):
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": "what is this"}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red " * (n + 1)}]
            file.write(json.dumps({"id": f"s{n}", "messages": messages, "images": images}) + "\n")
    source = {"path": str(root / "samples.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "uneven", "sources": [source]}))
    return root / "recipe.yaml"


def values(peer, recipe, run_dir, policy, packing="none", **train):
    return {
        "run_dir": str(run_dir),
        "model": {"init_from": str(peer)},
        "trainable": policy,
        "data": {"recipe": str(recipe), "max_length_tokens": 400, "packing": packing},
        "optim": {"lr": 1e-3, "max_grad_norm": 0.5},
        "train": {"global_batch_size": 3, "micro_batch_size": 1, "epochs": 1, "dtype": "float32", **train},
    }


def partitioned(tmp_path, name):
    """`ds_configs/NAME.json` with every tensor partitioned."""
    ds_config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / f"{name}.json").write_text(json.dumps(ds_config))
    return str(tmp_path / f"{name}.json")


def test_ranks_packing_and_resuming_train_as_one_process_does(peers, uneven, tmp_path):
    zero2, zero3 = (
        {"kind": "deepspeed", "ds_config": path} for path in ("ds_configs/zero2.json", partitioned(tmp_path, "zero3"))
    )
    fsdp = {"kind": "fsdp", "world_size": 2}
    recomputed = {"packing": "shared_prefix", "gradient_checkpointing": True}
    cases = {
        "zero2": ("rows_and_columns", "full", zero2, {"packing": "samples"}, 2),
        "zero3": ("several_axes", "full", zero3, recomputed, 2),
        "zero3_lora": ("rows_and_columns", "adapted", zero3, {}, None),
        "fsdp": ("several_axes", "full", fsdp, recomputed, None),
        "fsdp_qlora": ("several_axes", "qlora", fsdp, {"packing": "samples"}, None),
    }
    runs = [
        (values(peers / peer, uneven, tmp_path / name, POLICIES[policy], **changes) | {"engine": engine}, stop_after)
        for name, (peer, policy, engine, changes, stop_after) in cases.items()
    ]
    launch_runs(runs, tmp_path)
    for peer, policy in sorted({(peer, policy) for peer, policy, *_ in cases.values()}):
        run_here(values(peers / peer, uneven, tmp_path / f"{peer}_{policy}", POLICIES[policy]))
    for name, (peer, policy, *_) in cases.items():
        here, there = tmp_path / f"{peer}_{policy}", tmp_path / name
        (ids, losses, norms), (own_ids, own_losses, own_norms) = series(here), series(there)
        assert own_ids == ids and len(ids) == 3, name
        assert own_losses == pytest.approx(losses, rel=1e-5), name
        assert own_norms == pytest.approx(norms, rel=1e-4), name
        ends = [mllm.load(path)[0].state_dict() for path in (here, there)]
        assert ends[0].keys() == ends[1].keys() and losses[-1] < losses[0]
        assert all(torch.allclose(t, ends[1][n], atol=1e-4) for n, t in ends[0].items()), name
    # Its base is that of the run's settings, which the export holds the trained weights against.
    export(str(tmp_path / "zero3_lora"), tmp_path / "adapter", "peft")
    kept = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    assert kept == ["model.connector.modality_projection.proj"]
