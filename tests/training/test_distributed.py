"""Runs of two ranks: one without an image, two launchers, offload, 4-bit weights."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from mllm.model.checkpoint import load
from tests.tiny import save_image
from tests.training.test_exactness import (  # noqa: F401 (a fixture)
    ROOT,
    config,
    free_port,
    launch,
    one_process,
    run_here,
    series,
)

TIME_LIMIT_S = 120
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture
def mostly_text(tmp_path):
    """A recipe whose every global batch of four has one image, so that one of two ranks sees none."""
    save_image(tmp_path / "red.png", (255, 0, 0))
    with open(tmp_path / "samples.jsonl", "w") as file:
        for n in range(8):
            content = [{"type": "text", "text": "hello " * (1 + n % 4)}]
            images = ["red.png"] if n % 4 == 0 else []
            messages = [
                {"role": "user", "content": [*({"type": "image"} for _ in images), *content]},
                {"role": "assistant", "content": "red"},
            ]
            file.write(json.dumps({"id": f"s{n}", "messages": messages, "images": images}) + "\n")
    source = {"path": str(tmp_path / "samples.jsonl"), "image_root": str(tmp_path)}
    (tmp_path / "mostly_text.yaml").write_text(yaml.safe_dump({"name": "mostly_text", "sources": [source]}))
    return tmp_path / "mostly_text.yaml"


@pytest.mark.slow
def test_a_rank_without_an_image_never_hangs_zero_3(tiny_parts, mostly_text, tmp_path):
    """Every trainable tensor of both ranks has a gradient at the first step, too, or the run would stop."""
    values = config(tiny_parts, mostly_text, tmp_path / "run", train__micro_batch_size=2)
    launch(values, tmp_path, ranks=2, stage=3, time_limit_s=TIME_LIMIT_S)
    assert len(series(tmp_path / "run")[0]) == 4


@pytest.mark.slow
def test_optimizer_and_weights_in_main_memory_train_as_one_process_does(one_process, tiny_parts, recipe, tmp_path):  # noqa: F811
    launch(config(tiny_parts, recipe, tmp_path / "run"), tmp_path, ranks=2, stage="3_offload")
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = one_process, series(tmp_path / "run")
    assert ids_a == ids_b
    assert loss_b == pytest.approx(loss_a, rel=1e-5) and norm_b[0] == pytest.approx(norm_a[0], rel=1e-5)


@pytest.mark.slow
def test_two_launchers_train_as_one_launcher_with_two_ranks(tiny_parts, recipe, tmp_path):
    launch(config(tiny_parts, recipe, tmp_path / "one", train__max_steps=2), tmp_path, ranks=2, stage=2)
    values = config(tiny_parts, recipe, tmp_path / "two", train__max_steps=2)
    path = tmp_path / "two_nodes.yaml"
    path.write_text(yaml.safe_dump(values | {"engine": {"ds_config": "ds_configs/zero2.json", "world_size": 2}}))
    hosts = tmp_path / "hostfile"
    hosts.write_text("node0 slots=1\nnode1 slots=1\n")
    rendezvous = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    # The launcher's --no_ssh trusts each node to be started by hand and looks no host up.
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    nodes = [
        subprocess.Popen(
            [*launcher, "--node_rank", str(rank), *rendezvous, "train/finetune.py", "--config", str(path)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for node in nodes:
            output, _ = node.communicate(timeout=TIME_LIMIT_S)
            assert node.returncode == 0, output[-3000:]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)  # the launcher's training process too
    assert series(tmp_path / "two") == series(tmp_path / "one")


@pytest.mark.slow
def test_qlora_under_zero_3_trains_as_in_one_process_and_its_checkpoint_is_whole(tiny_parts, recipe, tmp_path):
    """Every 4-bit weight is really partitioned here: the shipped file leaves small ones whole on each rank."""
    ds_config = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    trainable = {"language_model": "qlora", "vision_encoder": "lora", "lora": LORA, "vision_encoder_lora": LORA}
    here = config(tiny_parts, recipe, tmp_path / "here") | {"trainable": trainable}
    there = here | {"run_dir": str(tmp_path / "there"), "engine": {"ds_config": str(tmp_path / "ds.json")}}
    run_here(here)
    launch(there, tmp_path, ranks=2, stage=3)
    assert series(tmp_path / "there")[1] == pytest.approx(series(tmp_path / "here")[1], rel=1e-5)
    ends = [load(tmp_path / name / "final")[0].state_dict() for name in ("here", "there")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.allclose(tensor.float(), ends[1][name].float(), atol=1e-4) for name, tensor in ends[0].items())
