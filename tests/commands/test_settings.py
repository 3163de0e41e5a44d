"""What is said of settings: a description of every field, and our names for keys of other frameworks."""

import json
import re

import pytest
import yaml

from mllm.cli import _command, main
from mllm.commands.schema import KINDS
from mllm.contrastive.settings import ContrastiveSettings
from mllm.data.recipe import RecipeSettings
from mllm.errors import UserError
from mllm.finetune.settings import FinetuneSettings
from mllm.foreign_keys import OURS
from mllm.settings import load_settings, validate_settings
from mllm.synthesis.settings import InstructionConfig

FINETUNE = {
    "run_dir": "runs/x",
    "model": {"init_from": "runs/stage1/final"},
    "data": {"recipe": "r.yaml"},
    "optim": {"lr": 1e-3},
}


def properties(schema):
    for place, group in (("", schema), *schema.get("$defs", {}).items()):
        for name, field in group.get("properties", {}).items():
            yield f"{place}.{name}", field


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_describes_every_field_in_sentences(kind, capsys):
    _command(["schema", kind])
    fields = dict(properties(json.loads(capsys.readouterr().out)))
    assert len(fields) > 10
    for place, field in fields.items():
        text = field.get("description", "")
        assert text[:1].isupper() and text.endswith("."), f"{place}: {text!r}"


def test_the_schema_of_training_is_the_default(capsys):
    _command(["schema"])
    first = capsys.readouterr().out
    _command(["schema", "train"])
    assert capsys.readouterr().out == first and json.loads(first)["title"] == "FinetuneSettings"


def flat(values, prefix=""):
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


@pytest.mark.parametrize("key", OURS)
def test_every_key_of_another_framework_is_named_with_ours_wherever_it_stands(key, tmp_path):
    ours = OURS[key]
    setting = re.split("[: ]", ours)[0]
    for group in (None, "train"):
        values = FINETUNE | ({key: 1} if group is None else {group: {key: 1}})
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.strip().startswith(f"{key}:"))
        place = f"{group}.{key}" if group else key
        with pytest.raises(UserError) as told:
            load_settings(FinetuneSettings, path)
        assert str(told.value) == f"{path}:{line}: unknown key {place!r}; here it is {ours}"
    # What is named is a setting, and a value that is named is one it takes.
    with pytest.raises(UserError) as told:
        validate_settings(FinetuneSettings, nested(setting, {"no": "such value"}), "test")
    assert f"unknown key {setting!r}" not in str(told.value)
    value = re.fullmatch(r"[\w.]+: (\w+)(?: \(.*\))?", ours)
    if value:
        everything = FINETUNE | {"data": FINETUNE["data"] | {"packing": "none"}}
        changed = merged(everything, nested(setting, yaml.safe_load(value[1])))
        assert setting in set(flat(validate_settings(FinetuneSettings, changed, "test").model_dump()))


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def merged(values, more):
    return values | {
        key: merged(values[key], value) if isinstance(value, dict) and key in values else value
        for key, value in more.items()
    }


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        (FinetuneSettings, FINETUNE | {"lr": 1e-3}, "unknown key 'lr'; here it is optim.lr"),
        (FinetuneSettings, FINETUNE | {"packing": "none"}, "unknown key 'packing'; here it is data.packing"),
        (FinetuneSettings, FINETUNE | {"train": {"seed": 1}}, "unknown key 'train.seed'; here it is seed"),
        (FinetuneSettings, FINETUNE | {"train": {"epoch": 1}}, "unknown key 'train.epoch'; did you mean 'epochs'?"),
        (ContrastiveSettings, {"learning_rate": 1}, "unknown key 'learning_rate'; here it is optim.lr"),
        (ContrastiveSettings, {"cutoff_len": 1}, "unknown key 'cutoff_len'; keys here: average_decay, data, "),
        (RecipeSettings, {"sources": [{"path": "a", "wieght": 1}]}, "'sources.0.wieght'; did you mean 'weight'?"),
        (
            InstructionConfig,
            {"backend": {"kind": "local", "model": "m", "temperatur": 1}},
            "'backend.local.temperatur'; did you mean 'temperature'? keys here: batch_size, device, kind, max_tokens",
        ),
    ],
)
def test_an_unknown_key_is_led_to_its_place_or_the_nearest_name(kind, values, told):
    with pytest.raises(UserError) as error:
        validate_settings(kind, values, "test")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--learning_rate=1e-5", "unknown option --learning_rate; here it is the setting optim.lr, given by --set"),
        ("--mm-projector-lr", "here it is the setting optim.lr_projector"),
        ("--nonsense", "unknown argument --nonsense"),
    ],
)
def test_an_option_of_another_framework_is_named_with_our_setting(option, told, capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "c.yaml", option])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith("error: ") and told in line


@pytest.mark.parametrize(
    ("command", "values", "told"),
    [
        (["train"], {"run_dir": "x", "data": {"pairs": "p"}}, "for another command: mllm clip train"),
        (["clip", "train"], FINETUNE, "for another command: mllm train"),
        (["clip", "train"], {"pictures": {}, "data": {"pairs": "p"}}, "for another command: mllm generate train"),
        (["generate", "train"], FINETUNE, "for another command: mllm train"),
        (["train"], {"name": "x", "sources": []}, "for another command: mllm data validate"),
        (["train"], {"backend": {}, "inputs": []}, "for another command: mllm synth"),
        (["synth"], {"sources": []}, "python -m data_recipes.demo"),
    ],
)
def test_a_config_of_another_command_names_that_command(command, values, told, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as left:
        main([*command, str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith(f"error: {path}") and told in line


@pytest.mark.parametrize("words", [["train"], ["clip", "train"], ["generate", "train"]])
def test_a_config_is_given_once_in_its_place_or_as_an_option(words, capsys):
    for arguments, told in (([], "give a config"), (["a.yaml", "--config", "b.yaml"], "a.yaml and --config b.yaml")):
        with pytest.raises(SystemExit) as left:
            main([*words, *arguments])
        assert left.value.code == 2 and told in capsys.readouterr().err
    for arguments in (["none.yaml"], ["--config", "none.yaml"], ["--local_rank=1", "--config", "none.yaml"]):
        with pytest.raises(SystemExit):
            main([*words, *arguments])
        assert "config file none.yaml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "told"), [("trian", "did you mean 'train'?"), ("nonsense", "`mllm --help` lists")])
def test_an_unknown_command_is_a_line_with_the_nearest_name(word, told, capsys):
    with pytest.raises(SystemExit) as left:
        main([word])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and told in line
