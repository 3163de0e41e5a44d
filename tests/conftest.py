"""Shared fixtures: tiny tokenizers, encoders and language models made here, and no network."""

import os
import shutil
import socket
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # pytest's own workers are told how wide its terminal is

import pytest
import torch

from tests.helpers import kernel_stand_ins
from tests.helpers.demo_inputs import demo_config
from tests.helpers.recipes import write_recipe
from tests.helpers.tiny import byte_tokenizer, save_tiny_parts

torch.set_num_threads(1)
kernel_stand_ins.register()


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection that leaves the machine fails the test."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "local"
        if host not in ("127.0.0.1", "::1", "localhost", "local"):
            raise AssertionError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session", autouse=True)
def index_cache(tmp_path_factory):
    """Indexes of sample files go to a directory of this run, also in the processes that tests launch."""
    directory = tmp_path_factory.mktemp("cache")
    os.environ["MLLM_CACHE_DIR"] = str(directory)
    return directory / "index"


@pytest.fixture(scope="session")
def tokenizer_factory():
    return byte_tokenizer


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory):
    """Directories `clip`, `siglip`, `lm` with tiny models of random weights."""
    root = tmp_path_factory.mktemp("parts")
    save_tiny_parts(root)
    return root


@pytest.fixture(scope="module")
def browser():
    """Chromium, where it and the package `playwright` are there."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe of a dozen samples, some with an image, some without."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def make_config(tmp_path):
    """A function that writes the inputs of the demo and returns the settings; keyword arguments replace top-level keys."""
    return partial(demo_config, tmp_path)
