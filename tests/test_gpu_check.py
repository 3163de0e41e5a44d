"""The part of `make gpu-check` that needs no GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: no GPU") and len(done.stderr.splitlines()) == 1


def test_every_check_is_reported_however_it_ends(gpu_check, tmp_path, monkeypatch):
    planned = [
        gpu_check.Check("good", ("-c", "print('all is well')")),
        gpu_check.Check("bad", ("-c", "import sys; print('it broke'); sys.exit(3)")),
        gpu_check.Check("slow", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), timeout_s=1),
        gpu_check.Check("gone", ("benchmarks/no_such_script.py",)),
    ]
    monkeypatch.setattr(gpu_check, "checks", lambda out: planned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "environment", lambda: {"GPU 0": "a GPU", "flash-attn": "not installed"})
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    report = (tmp_path / "report.md").read_text()
    assert "4 of 4 checks done, 1 passed." in report and "| flash-attn | not installed |" in report
    for name, outcome in (
        ("good", "passed"),
        ("bad", "failed (exit code 3)"),
        ("slow", "out of time (1 s)"),
        ("gone", "no such script"),
    ):
        assert f"| {name} | {outcome} |" in report
    assert "all is well" in report and "it broke" in report and "begun" in report


def test_the_environment_names_every_package_that_matters(gpu_check):
    found = gpu_check.environment()
    assert found["torch"] == torch.__version__ and set(gpu_check.PACKAGES) < set(found)
