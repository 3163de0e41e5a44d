"""Pairs of four colours, and a run that tells them apart."""

import pytest

from tests.helpers.clip import settings, train, write_pairs


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run that tells four colours apart, and the folder of its images."""
    root = tmp_path_factory.mktemp("colours")
    (root / "images").mkdir()
    values = settings(write_pairs(root, "images/"), root / "run", epochs=25).model_dump(exclude_unset=True)
    values["model"]["text_length_tokens"] = 48
    train(values)
    return root
