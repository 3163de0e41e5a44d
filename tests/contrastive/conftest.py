"""Pairs of four colours."""

import pytest

from tests.helpers.clip import write_pairs


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path)
