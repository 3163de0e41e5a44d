"""Rounds of sampling, verifying, selecting, training and scoring: each arrow once, and the report of what came of it."""

import json
import shutil

import pytest
import yaml

from mllm.checkpoint.ours import save
from mllm.checkpoint.start import build
from mllm.commands.improve import run as improve_command
from mllm.data.recipe import load_recipe
from mllm.data.dataset import Mixture
from mllm.errors import UserError
from mllm.improve import run as improve_run
from mllm.improve.run import improve
from mllm.improve.selection import Choice, choose
from mllm.improve.settings import ImproveSettings, SelectionSettings
from mllm.settings import validate_settings
from tests.helpers.runs import config
from tests.helpers.tiny import tiny_settings

REWARD = {"kind": "python", "function": "tests.grpo.own_rewards:early_letters"}


@pytest.fixture(scope="module")
def start(tiny_parts, tmp_path_factory):
    """The directory of a model that says different things."""
    import torch

    model, processor = build(tiny_settings(tiny_parts))
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    directory = tmp_path_factory.mktemp("start") / "model"
    save(directory, model, processor)
    return directory


def values_of(tiny_parts, recipe, start, tmp_path, learn_from="pairs", **more):
    training = config(tiny_parts, "none", "none")
    training["model"] = {"init_from": "none"}
    training["trainable"] = {"language_model": "lora", "lora": {"rank": 2}}
    training["data"]["max_length_tokens"] = 256
    training["train"] |= {"global_batch_size": 4, "epochs": 1, "trackers": []}
    if learn_from == "pairs":
        training["preference"] = {}
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(training))
    return {
        "run_dir": str(tmp_path / "run"),
        "model": str(start),
        "prompts": {"recipe": str(recipe), "count": 6},
        "sampling": {"answers": 3, "max_new_tokens": 12},
        "rewards": {"parts": [REWARD]},
        "selection": {"learn_from": learn_from, "takes_cut_answers": True},
        "training": str(tmp_path / "training.yaml"),
    } | more


def go(values):
    return improve(validate_settings(ImproveSettings, values, "test"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_x(tiny_parts, recipe, start, tmp_path):
    for kind in ("best", "pairs"):
        (tmp_path / kind).mkdir()
        values = values_of(tiny_parts, recipe, start, tmp_path / kind, kind)
        page = go(values)
        print(page)
    import shutil
    shutil.rmtree("/tmp/grpo/pages", ignore_errors=True); shutil.copytree(tmp_path, "/tmp/grpo/pages")
    for p in sorted((tmp_path/"pairs"/"run").rglob("*")):
        if p.is_file(): print(p.relative_to(tmp_path))
