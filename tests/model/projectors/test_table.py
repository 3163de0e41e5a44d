"""The page's table of projectors says what the code makes of them."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from mllm.finetune.flops import projector_flops
from mllm.model.projectors import Sizes, build_projector
from mllm.model.settings import ProjectorSettings
from tests.helpers.connectors import CONNECTORS, geometry_of, parameter_count

PAGE = Path(__file__).parents[3] / "docs/how-to/choose_parts.md"
ROWS = re.findall(r"^\| `(\{kind.*?\})` \| (.*?) \| (.*?) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("given,tokens,parameters,flops", ROWS)
def test_a_line_of_the_table_is_what_the_projector_is(given, tokens, parameters, flops):
    settings = ProjectorSettings(**yaml.safe_load(given))
    geometry = geometry_of(336, 14, **settings.model_dump())
    with torch.device("meta"):
        projector = build_projector(settings, Sizes(1024, 4096, geometry, 24)).requires_grad_(False)
    assert geometry.tokens_per_tile == int(tokens)
    assert f"{parameter_count(projector):,}" == parameters
    assert f"{projector_flops(projector, False) / 1e9:.1f}" == flops


def test_every_kind_has_a_line():
    assert {yaml.safe_load(given)["kind"] for given, *_ in ROWS} == CONNECTORS.keys() - {"mlp3x_gelu"}
