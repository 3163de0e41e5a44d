"""What a run starts from: a calibrated projector, the language model of an earlier run, a dtype that the device has."""

import pytest
import torch
import yaml
from transformers import LlamaConfig

from mllm.checkpoint import ours as checkpoint
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune import run as finetune
from mllm.finetune.calibration import calibrate_projector
from mllm.finetune.estimate import estimate_runs
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.kernels import choice
from mllm.model.settings import ProjectorSettings
from mllm.settings import validate_settings
from mllm.training import build_engine
from tests.helpers.runs import config, run_here, series
from tests.helpers.tiny import save_image

pytestmark = pytest.mark.slow


def settings(values):
    return validate_settings(FinetuneSettings, values, "test")


def after(tiny_parts, recipe, tmp_path):
    """A run that takes its language model from the run `one`, and everything else fresh."""
    values = config(
        tiny_parts, recipe, tmp_path / "two", model__language_model={"path": str(tmp_path / "one" / "final")}
    )
    values["trainable"] = {}
    return values


def test_a_language_model_may_come_from_an_earlier_run_of_ours(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "one")
    values["trainable"] = {"language_model": "lora", "lora": {"rank": 4, "alpha": 8}}
    run_here(values)
    trained, _ = checkpoint.load(tmp_path / "one" / "final")
    model, processor = start_model(settings(after(tiny_parts, recipe, tmp_path)))
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        expected = trained.language_model(input_ids=ids).logits
        assert torch.allclose(model.language_model(input_ids=ids).logits, expected, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert len(processor.tokenizer) <= model.language_model.get_input_embeddings().num_embeddings
    run_here(after(tiny_parts, recipe, tmp_path))


def test_a_chain_through_a_language_model_is_estimated_before_it_has_begun(tiny_parts, recipe, tmp_path):
    first = settings(config(tiny_parts, recipe, tmp_path / "one"))
    second = settings(after(tiny_parts, recipe, tmp_path))
    third = settings(
        config(tiny_parts, recipe, tmp_path / "three")
        | {"model": {"init_from": str(tmp_path / "two" / "final"), "prompt_format": "chatml"}}
    )
    assert [estimate.steps_left for estimate in estimate_runs([first, second, third])] == [6, 6, 6]


def test_calibration_passes_over_broken_images_and_needs_one_that_is_whole(tiny_parts, recipe, tmp_path):
    lines = (recipe.parent / "samples.jsonl").read_text()
    (tmp_path / "samples.jsonl").write_text(lines)
    for name in ("red", "blue", "gray"):
        (tmp_path / f"{name}.png").write_bytes(b"not an image")
    source = {"path": str(tmp_path / "samples.jsonl"), "image_root": str(tmp_path)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "broken", "sources": [source]}))
    mixture = Mixture(load_recipe(str(tmp_path / "recipe.yaml")), 0, False)
    model, processor = start_model(settings(config(tiny_parts, recipe, tmp_path / "run")))
    embeddings, eight = model.language_model.get_input_embeddings().weight, ProjectorSettings(calibration_images=8)
    try:
        calibrate_projector(model.projector, model.vision_encoder, embeddings, processor, mixture, eight)
    except UserError as error:
        assert "calibration_images" in str(error)
    else:
        raise AssertionError("no image could be read")
    save_image(tmp_path / "red.png")
    calibrate_projector(model.projector, model.vision_encoder, embeddings, processor, mixture, eight)
    assert model.projector.feature_mean.abs().sum() > 0


def test_a_run_calibrates_a_new_projector_and_leaves_one_that_was_trained(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "one", train__max_steps=1)
    values["model"]["projector"] = {"calibration_images": 3}
    run_here(values)
    first, _ = checkpoint.load(tmp_path / "one" / "final")
    assert first.projector.feature_mean.abs().sum() > 0
    second = config(tiny_parts, recipe, tmp_path / "two", train__max_steps=1, optim__lr=1e-12)
    second["model"] = {"init_from": str(tmp_path / "one" / "final"), "prompt_format": "chatml"}
    second["model"]["projector"] = {"calibration_images": 1}
    run_here(second)
    back, _ = checkpoint.load(tmp_path / "two" / "final")
    for name, tensor in first.projector.state_dict().items():
        assert torch.allclose(tensor, back.projector.state_dict()[name], atol=1e-6), name


def test_dtype_auto_is_what_the_device_multiplies_and_the_saved_config_says_it(
    tiny_parts,
    recipe,
    tmp_path,
    monkeypatch,
):
    for able, expected in ((True, "autocast"), (False, "float32")):
        monkeypatch.setattr(build_engine, "multiplies_bfloat16", lambda able=able: able)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        run_dir = tmp_path / expected
        run_here(config(tiny_parts, recipe, run_dir, train__dtype="auto", train__max_steps=1))
        assert yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["dtype"] == expected


@pytest.mark.parametrize(("has_avx512_bf16", "onednn_may", "expected"), [(1, 1, True), (1, 0, False), (0, 1, False)])
def test_a_cpu_multiplies_bfloat16_where_it_has_the_instructions_and_onednn_may_use_them(
    monkeypatch, has_avx512_bf16, onednn_may, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(has_avx512_bf16), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bool(onednn_may), raising=False)
    assert build_engine.multiplies_bfloat16() is expected


def test_a_run_in_16_bits_on_a_gpu_learns_by_torchs_kernel_what_it_learns_on_a_cpu(
    tiny_parts, recipe, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    losses = []
    for name, capability in (("cpu", None), ("gpu", 9)):
        for module in (finetune, choice):
            monkeypatch.setattr(module, "gpu_capability", lambda found=capability: found)
        shared = {"data__packing": "shared_prefix", "train__dtype": "autocast"}
        run_here(config(tiny_parts, recipe, tmp_path / name, **shared))
        losses.append(series(tmp_path / name)[1])
    assert "attention: torch's variable-length flash-attention" in caplog.text
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_a_model_that_no_kernel_of_the_gpu_takes_ends_the_run_before_anything_is_written(
    tiny_parts, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(finetune, "gpu_capability", lambda: 9)
    words = LlamaConfig.from_pretrained(tiny_parts / "lm")
    words.head_dim = 12
    words.save_pretrained(tmp_path / "lm")
    values = config(
        tiny_parts,
        recipe,
        tmp_path / "run",
        model__language_model={"path": str(tmp_path / "lm")},
        train__dtype="autocast",
    )
    with pytest.raises(UserError, match=r"heads have 12 features.*multiples of 8.*write train.attention sdpa"):
        run_here(values)
    assert not (tmp_path / "run").exists()
