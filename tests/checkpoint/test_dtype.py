"""`dtype: auto`: bfloat16 on a GPU that has it, float32 elsewhere, and results that say which it was."""

from contextlib import nullcontext

import pytest
import torch

import mllm
from mllm.checkpoint.load import resolve_dtype
from mllm.checkpoint.start import build
from mllm.cli import build_parser
from mllm.errors import UserError
from mllm.evaluation.subjects.local import load_local
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize(
    "device,has_gpu,has_bfloat16,expected",
    [
        ("cpu", True, True, "float32"),
        ("cuda", True, True, "bfloat16"),
        ("cuda:1", True, True, "bfloat16"),
        ("cuda:0", True, False, "float32"),
        ("cuda", False, False, "float32"),
        ("mps", False, False, "float32"),
    ],
)
def test_auto_is_what_the_device_computes_in(monkeypatch, device, has_gpu, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "device", lambda name: nullcontext())
    assert resolve_dtype("auto", device) == expected
    for named in ("float32", "bfloat16", "float16"):
        assert resolve_dtype(named, device) == named
    with pytest.raises(UserError, match="choose one of: auto, float32"):
        resolve_dtype("int8", device)


def test_every_command_that_loads_a_model_takes_auto_unless_told():
    parser = build_parser()
    for command in ("chat", "serve", "eval"):
        assert parser.parse_args([command, "model"]).dtype == "auto"
        assert parser.parse_args([command, "model", "--dtype", "float16"]).dtype == "float16"


def test_the_dtype_is_written_down_as_it_was_resolved(tiny_parts, tmp_path):
    mllm.save(tmp_path / "model", *build(tiny_settings(tiny_parts)))
    subject, _ = load_local(str(tmp_path / "model"), "auto", 8)
    expected = resolve_dtype("auto", "cuda:0" if torch.cuda.is_available() else "cpu")
    assert subject.identity["dtype"] == expected
    model, _ = mllm.load(tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
