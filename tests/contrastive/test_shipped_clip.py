"""The CLIP that comes with the demo: its image side stays as it was, and its text side answers in CLIP's own prompt."""

import hashlib
import shlex

import pytest
import torch
from safetensors import safe_open

from mllm.cli import build_parser
from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, ENSEMBLE, class_features
from mllm.inference.dual_features import load_encoder
from tests.helpers.runs import ROOT

SHIPPED = ROOT / "data_recipes" / "demo" / "clip"
# Every published model of the demo sees through these weights.
IMAGE_SIDE = "11e4d1a93b5cc91e81412df2fbdc1051081626d04faf4e6ac801da261361eed8"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


def test_the_image_side_is_the_one_that_the_demos_models_were_trained_on():
    digest = hashlib.sha256()
    with safe_open(SHIPPED / "model.safetensors", "pt") as weights:
        names = sorted(name for name in weights.keys() if name.startswith("vision_model."))  # noqa: SIM118
        for name in names:
            digest.update(name.encode())
            digest.update(weights.get_tensor(name).numpy().tobytes())
    assert len(names) == 71 and digest.hexdigest() == IMAGE_SIDE


def test_colours_and_shapes_have_features_of_their_own_in_clips_own_prompt_and_the_ensemble():
    encoder = load_encoder(SHIPPED)
    assert encoder.preparer.fit == "pad"
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for templates in (DEFAULT_TEMPLATES, ENSEMBLE):
        classes = class_features(encoder, names, templates)
        assert (classes @ classes.T - 2 * torch.eye(len(names))).max() < 0.95


def test_the_first_example_of_the_help_names_what_the_picture_shows(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        build_parser(["clip"]).parse_args(["clip", "classify", "--help"])
    example = capsys.readouterr().out.partition("example:\n")[2].strip().splitlines()[0]
    monkeypatch.chdir(ROOT)
    options = build_parser(["clip"]).parse_args(shlex.split(example)[1:])
    options.run(options)
    first = capsys.readouterr().out.strip().partition(": ")[2].partition(",")[0]
    name, _, share = first.rpartition(" ")
    assert name == "triangle" and float(share.rstrip("%")) > 90
