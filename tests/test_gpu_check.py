"""The part of `make gpu-check` that needs no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
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


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: no GPU") and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_every_check_is_reported_however_it_ends(gpu_check, tmp_path, monkeypatch):
    planned = [
        gpu_check.Check("good", ("-c", "print('all is well'); print('figures: {\"MFU\": 0.41}')"), 60),
        gpu_check.Check("bad", ("-c", "import sys; print('it broke'); sys.exit(3)"), 60),
        gpu_check.Check("slow", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), timeout_s=1),
        gpu_check.Check("gone", ("benchmarks/no_such_script.py",), 60),
    ]
    monkeypatch.setattr(gpu_check, "checks", lambda out, size: planned)
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
    assert "| MFU | 0.41 |" in report
    told = json.loads((tmp_path / "report.json").read_text())
    assert [check["outcome"] for check in told["checks"]][1] == "failed (exit code 3)"
    assert told["checks"][0]["figures"] == {"MFU": 0.41} and told["environment"]["GPU 0"] == "a GPU"


def test_all_checks_end_within_twelve_minutes(gpu_check, tmp_path):
    assert sum(check.timeout_s for check in gpu_check.checks(tmp_path, "1b")) <= 12 * 60


@pytest.mark.slow
def test_packages_are_installed_from_a_folder_of_wheels_alone(gpu_check, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "WORD = 'carried'\n")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    gpu_check.install(wheels, tmp_path)
    found = gpu_check.run(gpu_check.Check("import", ("-c", "import carried; print(carried.WORD)"), 60), tmp_path)
    assert found.passed and found.tail == "carried"
    with pytest.raises(SystemExit, match="no wheel"):
        gpu_check.install(tmp_path / "none", tmp_path)


@pytest.mark.slow
def test_the_sections_run_on_a_cpu_as_they_would_on_a_gpu(gpu_check, tmp_path):
    """All in one process, where DeepSpeed can make its group of ranks but once."""
    script = (
        "import sys, torch.distributed as dist; dist.destroy_process_group = lambda: None;"
        "import gpu_sections; gpu_sections.main(sys.argv[1:])"
    )
    # ZeRO-3 last: DeepSpeed gives the whole process another linear function with it.
    sections = ["shapes", "step", "stage1", "stage2", "resume", "resumed", "qlora", "zero3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(SCRIPT.parents[1]), str(SCRIPT.parent)))}
    command = [sys.executable, "-c", script, *sections, "--size", "tiny", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(gpu_check.FIGURES)]
    figures = dict(zip(sections, (json.loads(line.removeprefix(gpu_check.FIGURES)) for line in lines), strict=True))
    assert 0 < figures["step"]["best MFU"] < 1 and len(figures["stage2"]["losses"]) == 4
    assert figures["resumed"]["losses"] == figures["stage2"]["losses"]


def test_the_environment_names_every_package_that_matters(gpu_check):
    found = gpu_check.environment()
    assert found["torch"] == torch.__version__ and set(gpu_check.PACKAGES) < set(found)
