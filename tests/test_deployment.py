"""The table of answers of several engines: which are equal, and where the others part from ours."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm.inference.answer import Answer, TokenLogprob

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORDS = SimpleNamespace(decode=lambda ids: " ".join(f"w{token}" for token in ids))
END = 9


@pytest.fixture(scope="module")
def deployment():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("deployment")
    sys.path.remove(str(BENCHMARKS))


def answered(*ids):
    tops = tuple(TokenLogprob(token, -0.5, ((token, -0.5), (token + 1, -0.75))) for token in ids)
    return Answer("words", ids, "stop", 3, 3, tops)


def test_answers_that_part_are_told_by_their_first_token(deployment):
    asked = [deployment.Asked("one", "a.png"), deployment.Asked("two")]
    ours = [answered(1, 2, 3, END), answered(4, END)]
    found = {"same": [[1, 2, 3], [4, END]], "other": [[1, 3, 3], [4, 5, 6]]}
    table = deployment.compare(asked, ours, found, {END}, WORDS)
    assert "| same | 2 of 2 |" in table and "| other | 0 of 2 |" in table and "| same | a |" not in table
    assert "| other | a | one | 2 | 'w2' | 'w3' | 0.250 | yes |" in table
    assert "| other | – | two | 2 | its end | 'w5' | 0.250 | no |" in table
