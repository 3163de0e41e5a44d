"""Without DeepSpeed and bitsandbytes, which some platforms have no build of, what doesn't need them works."""

import sys
from datetime import timedelta

import pytest
import torch
from torch import nn

from mllm.checkpoint.load import load, quantize_language_model
from mllm.checkpoint.ours import save
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.model.quantized_layers import packed
from mllm.training.deepspeed_engine import init_distributed
from mllm.training.optimizer import _bitsandbytes_class
from tests.helpers.commands import PYTHON, process
from tests.helpers.tiny import tiny_settings

BLOCKED = """
import sys
sys.modules["deepspeed"] = sys.modules["bitsandbytes"] = None
import mllm
from mllm.cli import main
main()
"""


@pytest.fixture
def saved(tiny_parts, tmp_path):
    save(tmp_path / "model", *build(tiny_settings(tiny_parts)))
    return tmp_path / "model"


@pytest.mark.slow
def test_a_chat_needs_neither_deepspeed_nor_bitsandbytes(saved):
    words = ("chat", saved, "-p", "what is this", "--json", "--max-new-tokens", "2")
    out, _ = process(*PYTHON, "-c", BLOCKED, *words)
    assert '"answer"' in out


@pytest.mark.parametrize(
    ("use", "extra"),
    [
        (lambda: init_distributed(timedelta(seconds=1)), "deepspeed"),
        (lambda: packed(torch.ones(64, 64)), "quantization"),
        (lambda: _bitsandbytes_class("adamw_8bit"), "quantization"),
    ],
)
def test_what_needs_them_names_the_extra_in_one_line(use, extra, monkeypatch):
    for name in ("deepspeed", "bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'mllm\[{extra}\]'") as caught:
        use()
    assert "\n" not in str(caught.value)


def test_8_bit_weights_without_bitsandbytes_name_the_extra(monkeypatch, tiny_parts):
    model, _ = build(tiny_settings(tiny_parts))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install 'mllm\[quantization\]'"):
        quantize_language_model(model, "8bit")


@pytest.mark.parametrize("name", ["mps", "cuda:99", "cdua", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name, saved):
    with pytest.raises(UserError, match=f"device '{name}' isn't there; this machine has: cpu"):
        load(saved, device=name)
    model, _ = load(saved, device="cpu")
    assert isinstance(model, nn.Module)
