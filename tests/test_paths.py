"""`~` and variables in paths: wherever a path is read, and nowhere else."""

from pathlib import Path

import pytest
import yaml

from data_recipes.demo.settings import GeneratorSettings
from mllm.cli import build_parser
from mllm.contrastive.settings import ContrastiveSettings
from mllm.data.index import cache_directory
from mllm.data.recipe import RecipeSettings
from mllm.errors import UserError
from mllm.finetune.settings import FinetuneSettings
from mllm.generation.settings import DiffusionSettings
from mllm.model.settings import LoraSettings
from mllm.settings import expanded, expanded_benchmark, load_settings, validate_settings
from mllm.synthesis.settings import InstructionConfig

HERE = {"path": "$DATA/x", "image_root": "~/images"}
FINETUNE = {
    "run_dir": "~/runs/x",
    "model": {"vision_encoder": {"path": "${DATA}/clip"}, "language_model": {"path": "$DATA/lm"}},
    "data": {"recipe": "~/recipe.yaml"},
    "optim": {"lr": 1e-3},
    "engine": {"ds_config": "$DATA/zero.json"},
    "eval": {"recipe": "~/heldout.yaml", "every_steps": 1},
    "samples": {"file": "~/q.jsonl", "image_root": "$DATA", "every_steps": 1},
    "benchmarks": {"names": ["pope@~/pope", "~/own.jsonl:iou", "gqa"], "data": "$DATA", "every_steps": 1},
}
SETTINGS = [
    (FinetuneSettings, FINETUNE),
    (FinetuneSettings, FINETUNE | {"model": {"init_from": "~/runs/y/final"}}),
    (
        ContrastiveSettings,
        {
            "run_dir": "~/clip",
            "model": {"image_encoder": "$DATA/clip"},
            "data": {"pairs": "~/p.jsonl", "heldout": "$DATA/h.jsonl", "image_root": "~"},
            "optim": {"lr": 1e-3},
        },
    ),
    (
        DiffusionSettings,
        {
            "run_dir": "~/pictures",
            "pictures": {"autoencoder": "$DATA/vae"},
            "text": {"clip": "~/clip"},
            "data": {"pairs": "~/p.jsonl", "heldout": "$DATA/h.jsonl", "image_root": "~"},
            "optim": {"lr": 1e-3},
        },
    ),
    (RecipeSettings, {"name": "r", "sources": [HERE]}),
    (GeneratorSettings, {"output": "~/out", "sources": [{"kind": "rendered_words", "path": "$DATA/words.txt"}]}),
    (
        InstructionConfig,
        {
            "output": "~/out",
            "prompts": "$DATA/prompts",
            "backend": {"kind": "local", "model": "~/lm"},
            "inputs": [{"name": "n", **HERE}],
            "kinds": {"detail": 1},
            "filters": {"evaluation": [HERE]},
        },
    ),
]


@pytest.fixture(autouse=True)
def places(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("UNSET_HERE", raising=False)


def texts(value):
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("kind, values", SETTINGS)
def test_every_path_of_every_config_is_expanded(kind, values):
    found = texts(validate_settings(kind, values, "test").model_dump(mode="json"))
    assert not [text for text in found if "~" in text or "$" in text]
    given = [text for text in texts(values) if "~" in text or "$" in text]
    wanted = {text.replace("~", "/home/me").replace("${DATA}", "/data").replace("$DATA", "/data") for text in given}
    assert wanted <= set(found)


@pytest.mark.parametrize("kind, values", SETTINGS[:1])
def test_overrides_and_the_configs_own_path_are_expanded_too(kind, values, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    settings = load_settings(kind, "$DATA/c.yaml", ["run_dir=~/other"])
    assert settings.run_dir == "/home/me/other"
    with pytest.raises(UserError, match=r"c\.yaml:\d+: run_dir: .*UNSET_HERE is not set"):
        load_settings(kind, "$DATA/c.yaml", ["run_dir=$UNSET_HERE/x"])


@pytest.mark.parametrize(
    "words, name",
    [
        (["export", "m", "~/x"], "out"),
        (["chat", "~/x"], "model"),
        (["synth", "~/x"], "config"),
        (["data", "convert", "a", "~/x"], "out"),
        (["data", "report", "r", "--out=~/x"], "out"),
        (["clip", "diagnose", "m", "p", "--picture=~/x.png"], "picture"),
        (["generate", "sample", "m", "p", "--out=~/x"], "out"),
        (["eval", "m", "--output=~/x"], "output"),
        (["score", "--metric", "m", "p", "--per-sample=~/x"], "per_sample"),
    ],
)
def test_paths_of_commands_are_expanded(words, name):
    assert str(getattr(build_parser().parse_args(words), name)).removesuffix(".png") == "/home/me/x"


def test_the_cache_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("MLLM_CACHE_DIR", "~/$DATA")
    assert cache_directory() == Path("/home/me//data/index")


@pytest.mark.parametrize(
    "text",
    ["a~b/c", "x/~", "llava-hf/llava", "https://host/a?b=$c&d=~", "price $5.jsonl", "openai:gpt-4o", "100%$", "./~"],
)
def test_what_is_no_home_and_no_variable_stays(text):
    assert expanded(text) == text and expanded_benchmark(text) == text


@pytest.mark.parametrize("text", ["$UNSET_HERE/x", "a/${UNSET_HERE}", "~no-one-of-that-name/x"])
def test_a_home_or_variable_that_is_not_there_never_becomes_the_name_of_a_directory(text):
    with pytest.raises(UserError, match=r"UNSET_HERE|no-one-of-that-name"):
        expanded(text)


@pytest.mark.parametrize("targets", ["all-linear", ["all-linear"], []])
def test_all_linear_is_another_word_for_no_patterns(targets):
    assert validate_settings(LoraSettings, {"targets": targets}, "test") == LoraSettings()
