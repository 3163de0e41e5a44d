"""Training and answering on a device that isn't the CPU: the CPU's numbers, and a host that hardly ever waits."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.runs import ROOT
from tests.shadow.cases import READ, TRAINING

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch lets nobody take the place of a device",
    ),
]
UNREAD = [name for name in TRAINING if name != READ]
CONTRASTIVE = ["infonce, one chunk", "infonce, chunks", "sigmoid, one chunk", "sigmoid, chunks"]
WAITS_A_STEP = 3


@pytest.fixture(scope="module")
def roads(tiny_parts, recipe, tmp_path_factory):
    """What each road gave, by its name."""
    command = [sys.executable, "-m", "tests.shadow.roads", tiny_parts, recipe, tmp_path_factory.mktemp("pairs")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {record["name"]: record for record in records}


@pytest.mark.parametrize("name", [*UNREAD, *CONTRASTIVE])
def test_a_device_gives_the_losses_and_gradients_of_the_cpu(roads, name):
    road = roads[name]
    # In lower precision a step's own rounding comes into the next one's loss.
    tolerance = 2e-2 if "bfloat16" in name or "autocast" in name else 1e-5
    losses, expected = zip(*road["series"], strict=True), zip(*road["expected"], strict=True)
    for found, wanted in zip(losses, expected, strict=True):
        assert found == pytest.approx(wanted, rel=tolerance)
    assert road["gradient_off"] < tolerance


@pytest.mark.parametrize("name", [*UNREAD, *CONTRASTIVE])
def test_no_micro_batch_waits_for_the_device_and_a_step_three_times_at_most(roads, name):
    for within, whole in zip(roads[name]["within"], roads[name]["whole"], strict=True):
        assert not within, "the host waits in a micro-batch:\n" + "\n".join(within)
        assert len(whole) <= WAITS_A_STEP, "the host waits in a step:\n" + "\n".join(whole)


def test_a_value_that_is_read_in_a_micro_batch_is_found_with_its_line(roads):
    within = roads[READ]["within"][-1]
    assert len(within) >= 2 and all("cases.py" in line and "loss_sum.item()" in line for line in within)


def test_answers_chats_and_likelihoods_on_a_device_are_those_of_the_cpu(roads):
    found, expected = roads["answers"]["found"], roads["answers"]["expected"]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5)
    assert {**found, "scores": None} == {**expected, "scores": None}


def test_every_kind_of_wait_is_noted_and_mixed_devices_are_refused(roads):
    kinds = roads["kinds of waits"]
    assert all(len(lines) == 1 for lines in kinds["waits"].values()), kinds["waits"]
    assert not any(kinds["none"].values()), kinds["none"]
    assert kinds["mixed"].startswith("aten.add.Tensor: tensors on gpu and on cpu")
