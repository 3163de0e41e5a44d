"""What the commands share."""

import pytest

from mllm.cli import build_parser
from mllm.command import settings_parser

GIVEN = ["--set", "a.b=1", "c=2", "--set", "d=x"]


@pytest.mark.parametrize(
    ("parser", "arguments"),
    [(settings_parser("test", "test"), ["--config", "c.yaml"]), (build_parser(), ["synth", "synth.yaml"])],
)
def test_set_takes_several_settings_and_may_be_repeated(parser, arguments):
    assert parser.parse_args([*arguments, *GIVEN]).overrides == ["a.b=1", "c=2", "d=x"]
    assert parser.parse_args(arguments).overrides == []
