"""`mllm generate`: what it writes, and what it says of a mistake."""

import json

import pytest
from PIL import Image

from mllm.cli import main
from tests.helpers.runs import ROOT


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([*map(str, words)])
    return left.value.code


def test_prompts_of_a_file_become_pictures_a_list_of_them_and_a_sheet(saved, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red square\n\na blue square\n")
    words = ("generate", "sample", saved, "--prompts", tmp_path / "prompts.txt", "-n", 2, "--steps", 1, "--seed", 7)
    assert run(*words, "--out", tmp_path / "out", "--sheet", tmp_path / "sheet.png") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "pictures.jsonl").read_text().splitlines()]
    assert [(one["caption"], one["seed"]) for one in lines] == [
        (f"a {colour} square", seed) for colour in ("red", "blue") for seed in (7, 8)
    ]
    assert all(Image.open(tmp_path / "out" / one["image"]).size == (16, 16) for one in lines)
    assert Image.open(tmp_path / "sheet.png").width > 200 and "4 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sheet", "x.png"], "give a prompt"),
        (["a square"], "name where pictures go: --sheet OUT.png"),
        (["a square", "--sheet", "x.png", "--guidance", "nan"], "guidance nan: a number from 0 on"),
        (["a square", "--sheet", "x.png", "--steps", "0"], "steps 0: pictures are drawn in 1 to 1000 steps"),
        (["a square", "--sheet", "x.png", "--seed", "-1"], "seed -1: a whole number from 0 to"),
        (["a square", "--sheet", "x.png", "--prior", "somewhere"], "leave --prior out"),
        (["--prompts", "none.txt", "--sheet", "x.png"], "none.txt can't be read"),
    ],
)
def test_a_mistake_is_a_line(saved, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert run("generate", "sample", saved, *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line and not (tmp_path / "x.png").exists()


def test_an_unknown_kind_is_named_with_the_kinds_there_are(capsys):
    config = ROOT / "train/configs/demo_diffusion.yaml"
    assert run("generate", "train", config, "--set", "kind=video") == 2
    assert "unknown kind 'video'; there are text, autoencoder" in capsys.readouterr().err
