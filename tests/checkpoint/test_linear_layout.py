"""Weights that lie by column are the same weights, and are saved as such."""

import torch
from safetensors.torch import load_file

import mllm
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.load import store_wide_layers_by_column
from mllm.checkpoint.start import build
from tests.helpers.tiny import tiny_settings


def test_wide_layers_lie_by_column_and_nothing_else_changes(tiny_parts):
    language_model = build(tiny_settings(tiny_parts))[0].language_model
    before = {name: tensor.clone() for name, tensor in language_model.state_dict().items()}
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        logits = language_model(ids).logits
        moved = store_wide_layers_by_column(language_model)
        assert torch.allclose(language_model(ids).logits, logits, atol=1e-6)
    layers = {name: m.weight for name, m in language_model.named_modules() if isinstance(m, torch.nn.Linear)}
    wide = {name for name, weight in layers.items() if weight.shape[0] >= weight.shape[1]}
    assert {name for name, weight in layers.items() if weight.stride(0) == 1} == wide
    assert moved == len(wide) and wide & {"lm_head"} and "model.layers.0.mlp.down_proj" not in wide
    assert all(torch.equal(before[name], tensor) for name, tensor in language_model.state_dict().items())


def test_what_was_loaded_so_is_saved_as_it_was(tiny_parts, tmp_path):
    model, processor = build(tiny_settings(tiny_parts))
    mllm.save(tmp_path / "a", model, processor)
    export_llava(model, processor, tmp_path / "hf_a")
    loaded = mllm.load(tmp_path / "a")
    assert loaded[0].language_model.get_output_embeddings().weight.stride(0) == 1
    mllm.save(tmp_path / "b", *loaded)
    export_llava(*loaded, tmp_path / "hf_b")
    for first, second in (("a", "b"), ("hf_a", "hf_b")):
        was, now = (load_file(tmp_path / folder / "model.safetensors") for folder in (first, second))
        assert was.keys() == now.keys() and all(torch.equal(was[name], now[name]) for name in was)
