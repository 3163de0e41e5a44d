"""A checkpoint that isn't whole, or belongs to another model, is refused in one line."""

import json
import shutil

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings
from tests.helpers.runs import config, run_here
from tests.helpers.tiny import tiny_settings


@pytest.fixture
def begun(tiny_parts, recipe, tmp_path):
    """The settings of a run that was stopped after three steps, on parts of its own."""
    for part in ("clip", "lm"):
        shutil.copytree(tiny_parts / part, tmp_path / part)
    values = config(tmp_path, recipe, tmp_path / "run")
    assert finetune(validate_settings(FinetuneSettings, values, "test"), stop_after=3) is None
    return values


def test_a_checkpoint_with_a_missing_or_cut_file_is_not_resumed(begun, tmp_path):
    state = tmp_path / "run" / "checkpoints" / "step_00000003" / "state" / "engine.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[:-10])
    with pytest.raises(
        UserError, match=r"engine.pt has \d+ of \d+ bytes: the checkpoint is not whole; remove .*step_0000"
    ):
        run_here(begun)
    state.unlink()
    with pytest.raises(UserError, match=r"engine.pt is missing: the checkpoint is not whole"):
        run_here(begun)


def test_a_checkpoint_of_another_version_is_refused_with_what_it_lacks(begun, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step_00000003" / "progress.json"
    progress = json.loads(path.read_text())
    del progress["best"], progress["callbacks"]
    path.write_text(json.dumps(progress))
    with pytest.raises(UserError, match=r"another version of mllm: its progress.json has no best, callbacks; start"):
        run_here(begun)


def test_a_run_whose_language_model_was_exchanged_is_not_resumed(begun, tmp_path):
    values = json.loads((tmp_path / "lm" / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**values | {"intermediate_size": 48})).save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match=r"another architecture or policy: .*proj.weight has shape \[.*64.*48"):
        run_here(begun)


def test_starting_from_another_architecture_or_an_incomplete_directory_is_refused(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run")
    values["model"] = {"init_from": str(tiny_parts / "lm"), "prompt_format": "chatml"}
    with pytest.raises(UserError, match="holds a 'llama' model, not one of ours"):
        run_here(values)
    checkpoint.save(tmp_path / "model", *build(tiny_settings(tiny_parts)))
    values["model"]["init_from"] = str(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    changed = saved | {"text_config": saved["text_config"] | {"intermediate_size": 48}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"weight\(s\) of another shape, such as language_model.*proj.weight"):
        run_here(values)
    (tmp_path / "model" / "config.json").write_text(json.dumps({k: v for k, v in saved.items() if k != "projector"}))
    with pytest.raises(UserError, match=r"config.json lacks projector; it isn't whole"):
        run_here(values)
    (tmp_path / "model" / "config.json").write_text(json.dumps(saved))
    index = {"weight_map": {"projector.linear_1.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002.safetensors, which model\.safetensors\.index"):
        run_here(values)
