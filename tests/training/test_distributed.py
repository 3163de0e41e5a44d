"""One run by two launchers."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from tests.helpers.launches import free_port, launch
from tests.helpers.runs import ROOT, config, series

TIME_LIMIT_S = 400


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
