"""The page of all families is whole, and says what was found."""

import re
from pathlib import Path

from mllm.conformance.checks import CHECKS
from mllm.conformance.families import families

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def test_the_page_has_every_family_once_and_counts_those_that_conform():
    text = PAGE.read_text(encoding="utf-8")
    rows = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    told = [row for row in rows if row[0] in families()]
    assert sorted(row[0] for row in told) == sorted(families())
    green = [row for row in told if row[1] == "yes"]
    assert all(len(row) == len(CHECKS) + 2 for row in green)
    assert f"**{len(green)} conform" in text
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "gemma3"} <= {row[0] for row in green}
    assert len(green) >= 25
