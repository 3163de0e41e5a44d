"""`mllm clip classify | retrieve | eval | index | search`, and what they refuse."""

import json
import shlex

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mllm.cli import build_parser
from mllm.contrastive.zeroshot import class_features, top_k_accuracy
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from tests.helpers.clip import COLOURS
from tests.helpers.tiny import save_image


def clip(*arguments):
    options = build_parser().parse_args(["clip", *map(str, arguments)])
    options.run(options)


def test_classes_in_prompts_are_named_and_an_ensemble_is_the_mean_of_its_prompts(trained, capsys):
    encoder = load_encoder(trained / "run")
    features = class_features(encoder, ["red", "blue"], ["a {} square", "{}"])
    by_hand = encoder.texts(["a red square", "red"]).mean(0)
    assert torch.allclose(features[0], F.normalize(by_hand, dim=0), atol=1e-6)
    images = [trained / "images" / f"{name}.png" for name in ("blue", "red")]
    clip("classify", trained / "run", *images, "--classes", "red,blue,green", "--template", "a {} square", "-k", 2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{images[0]}: blue ") and second.startswith(f"{images[1]}: red ")
    assert first.count("%") == 2


def test_an_index_finds_by_text_and_by_image_what_brute_force_finds(trained, tmp_path, capsys):
    pytest.importorskip("faiss")
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in COLOURS.items():
        save_image(folder / f"{name}.png", colour, (16, 16))
    (folder / "broken.png").write_bytes(b"no image")
    clip("index", trained / "run", folder, tmp_path / "index")
    assert "4 images, 1 unreadable left out" in capsys.readouterr().out
    for query in (["--text", "a green square"], ["--image", trained / "images" / "black.png"]):
        clip("search", tmp_path / "index", *query, "-k", 4, "--sheet", tmp_path / "sheet.png")
        found = capsys.readouterr().out.splitlines()
        clip("retrieve", trained / "run", folder, *query, "-k", 4)
        retrieved = capsys.readouterr().out.splitlines()
        assert found[:4] == retrieved[:4] and len(found) == 5
        assert retrieved[4:] == ["1 unreadable image left out"]
        assert ("green" if query[0] == "--text" else "black") in found[0]
    assert Image.open(tmp_path / "sheet.png").width == 640


def test_eval_reports_recall_of_pairs_and_accuracy_of_class_folders(trained, tmp_path, capsys):
    clip("eval", trained / "run", "--pairs", trained / "pairs.jsonl", "--image-root", trained, "-k", 1)
    result = json.loads(capsys.readouterr().out)
    assert result["image_to_text_recall@1"] == result["text_to_image_recall@1"] == 1.0
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        save_image(tmp_path / name / "one.png", colour, (16, 16))
    clip("eval", trained / "run", "--folder", tmp_path, "--template", "a {} square", "-k", 1, 2)
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy@1"] == 1.0 and result["chance@1"] == 0.25
    assert top_k_accuracy(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([1]), 2) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "red,blue,red"], "class 'red' is named twice"),
        (["--classes", "red"], "1 class.*two or more"),
        (["--classes", "red,blue", "--template", "a photo"], "must hold {} once"),
        (["--classes", "red,blue", "-k", "0"], "-k 0: give at least 1"),
        (["--class-file", "CLASSES"], r"classes.txt:3: class 'red' is named twice \(first in line 1\)"),
    ],
)
def test_bad_classes_are_one_clear_line(trained, tmp_path, arguments, message):
    (tmp_path / "classes.txt").write_text("red\nblue\nred\n")
    arguments = [str(tmp_path / "classes.txt") if a == "CLASSES" else a for a in arguments]
    with pytest.raises(UserError, match=message):
        clip("classify", trained / "run", trained / "images" / "red.png", *arguments)


COMMANDS = (
    "classify",
    "retrieve",
    "eval",
    "index",
    "search",
    "export",
    "concepts",
    "adapt",
    "diagnose",
    "misalignment",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["clip", command, "--help"])
    _, _, example = capsys.readouterr().out.partition("example:\n")
    for line in example.replace("\\\n", " ").strip().splitlines():
        assert build_parser().parse_args(shlex.split(line)[1:]).clip_command == command


def test_bad_queries_and_models_are_one_clear_line(trained, tmp_path, tiny_parts):
    with pytest.raises(UserError, match="text 1 of 1 is empty"):
        clip("retrieve", trained / "run", trained / "images", "--text", " ")
    with pytest.raises(UserError, match="holds no image files"):
        clip("retrieve", trained / "run", tmp_path, "--text", "red")
    with pytest.raises(UserError, match="is no model with a tokenizer"):
        clip("retrieve", tmp_path, trained / "images", "--text", "red")
    with pytest.raises(UserError, match="is of type llama; a dual encoder is"):
        clip("retrieve", tiny_parts / "lm", trained / "images", "--text", "red")
    with pytest.raises(UserError, match="is no image index"):
        clip("search", tmp_path, "--text", "red")
