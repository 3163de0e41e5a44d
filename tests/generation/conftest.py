"""A tiny CLIP, pairs of coloured squares, a generator of random weights, and one that was trained for four steps."""

import pytest

from mllm.generation.kinds import train_generator
from tests.helpers.generation import settings_of, write_clip, write_generator, write_pairs


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def saved(clip, tmp_path_factory):
    """The directory of a generator of random weights."""
    return write_generator(clip, tmp_path_factory.mktemp("generator") / "saved")


@pytest.fixture(scope="session")
def run(pairs, clip, tmp_path_factory):
    """The directory of a finished run of four steps."""
    run_dir = tmp_path_factory.mktemp("generator") / "run"
    train_generator(settings_of(pairs, clip, run_dir))
    return run_dir
