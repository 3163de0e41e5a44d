"""A tiny model that says different things, a server of it, and images."""

import pytest
import torch

from mllm.checkpoint.start import build
from tests.helpers.serving import serving
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture(scope="module")
def assembled(tiny_parts):
    model, processor = build(tiny_settings(tiny_parts))
    # Random weights this small answer with one token for ever; larger ones say something that depends on the prompt.
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval(), processor


@pytest.fixture(scope="module")
def port(assembled):
    with serving(assembled) as port:
        yield port


@pytest.fixture
def images(tmp_path):
    return [save_image(tmp_path / f"{i}.png", (60 * i, 200 - 40 * i, 90)) for i in range(3)]
