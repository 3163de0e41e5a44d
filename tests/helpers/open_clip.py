"""open_clip's own modules, without its package's imports: its transforms need torchvision, which isn't there."""

import importlib
import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file

TORCHVISION = ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms")
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture
def open_clip(monkeypatch):
    """Imports a module of open_clip by its name; skips the test where it isn't installed."""
    found = find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("open_clip_torch is not installed")
    package = types.ModuleType("open_clip")
    package.__path__, package.__spec__ = [str(Path(found.origin).parent)], found
    ftfy = MagicMock()
    ftfy.fix_text = str
    stands_in = {"open_clip": package, "ftfy": ftfy}
    stands_in |= {name: MagicMock() for name in (*TORCHVISION, f"{TORCHVISION[-1]}.functional")}
    for name, module in stands_in.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield lambda name: importlib.import_module(f"open_clip.{name}")
    for name in [name for name in sys.modules if name.startswith("open_clip.")]:
        del sys.modules[name]


def save_tiny_open_clip(directory, kind, tokenizer=None, **changes):
    """Write a directory of open_clip with random weights of one of its classes, as its hub's are; returns the model.

    tokenizer: one that isn't CLIP's, which is saved beside and of whose size the model is.
    """
    config = CONFIG | changes
    directory.mkdir()
    if tokenizer is not None:
        own = {"vocab_size": len(tokenizer), "hf_tokenizer_name": ".", "pool_type": "eos"}
        config = config | {"text_cfg": config["text_cfg"] | own | {"eos_id": tokenizer.eos_token_id}}
        tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    model = kind(**config).eval()
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (directory / "open_clip_config.json").write_text(json.dumps(described))
    return model
