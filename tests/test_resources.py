"""DeepSpeed settings and prompts are found by name, in a checkout and in a wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mllm import resources
from mllm.errors import UserError
from mllm.resources import find_ds_config, shipped, shipped_unless_there
from mllm.synthesis.prompts import load_kind
from mllm.training.ds_config import read_ds_config, zero_stage
from tests.helpers.runs import ROOT


@pytest.mark.parametrize("named", ["zero2", "zero2.json", "ds_configs/zero2.json"])
def test_a_shipped_ds_config_is_found_by_name_wherever_the_run_is_started(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_ds_config(named) == ROOT / "ds_configs" / "zero2.json"
    assert zero_stage(read_ds_config(named)) == 2


def test_a_file_of_the_users_goes_before_the_shipped_one_and_an_unknown_name_lists_the_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero2").write_text("{}")
    assert read_ds_config("zero2") == {}
    for named in ("zero4", "own/zero2.json", "zero2.yaml"):
        with pytest.raises(UserError, match=f"engine.ds_config {named} does not exist; .*one of .*zero2, .*zero3"):
            find_ds_config(named)


def test_a_kind_without_prompts_of_the_users_has_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    (own / "detail").mkdir(parents=True)
    (own / "detail" / "system.txt").write_text("Be brief.")
    assert load_kind(own, "detail").system == "Be brief."
    assert load_kind(own, "conversation") == load_kind(ROOT / "data_recipes" / "prompts", "conversation")
    assert shipped_unless_there("prompts", own, "nothing") == own / "nothing"
    assert load_kind(Path("data_recipes/prompts"), "detail") == load_kind(ROOT / "data_recipes" / "prompts", "detail")
    with pytest.raises(UserError, match=r"elsewhere/detail/system\.txt does not exist"):
        load_kind(Path("elsewhere"), "detail")


@pytest.mark.slow
def test_a_wheel_holds_every_shipped_file_and_no_other_package(tmp_path, monkeypatch):
    pytest.importorskip("hatchling")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=400)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "unpacked")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mllm"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mllm").rglob("*") if path.suffix in (".py", ".html")}
    assert sources <= names
    package = tmp_path / "unpacked" / "mllm"
    for folder, place in resources.IN_A_CHECKOUT.items():
        files = [path.relative_to(ROOT / place) for path in (ROOT / place).rglob("*") if path.is_file()]
        inside = package / resources.IN_A_WHEEL / folder
        assert files and all((inside / path).read_bytes() == (ROOT / place / path).read_bytes() for path in files)
    monkeypatch.setattr(resources, "PACKAGE", package)
    assert shipped("prompts").is_relative_to(package) and find_ds_config("zero3").is_relative_to(package)
    code = "import json, mllm\nfrom mllm.training.ds_config import read_ds_config\n"
    run = [sys.executable, "-c", code + "print(json.dumps([mllm.__file__, read_ds_config('zero3')]))"]
    told = subprocess.run(run, cwd=tmp_path, env={"PYTHONPATH": str(package.parent)}, capture_output=True, text=True)
    place, ds_config = json.loads(told.stdout)
    assert place.startswith(str(package)) and zero_stage(ds_config) == 3
