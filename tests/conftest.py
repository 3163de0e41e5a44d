"""Shared fixtures: tiny tokenizers, encoders and language models made here, and no network."""

import gc
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # pytest's own workers are told how wide its terminal is

import pytest
import torch

from tests.helpers import kernel_stand_ins
from tests.helpers.clip import train_on_colours
from tests.helpers.demo_inputs import demo_config
from tests.helpers.recipes import write_recipe
from tests.helpers.tiny import byte_tokenizer, save_tiny_parts

torch.set_num_threads(1)
kernel_stand_ins.register()

TESTS = Path(__file__).parent
# By the processor's seconds; a name that is missing or out of its place costs time alone.
LONGEST = (
    *("training/test_zero3.py", "training/test_launched.py", "commands/test_launchers.py", "training/test_killed.py"),
    *("training/test_shadow_gpu.py", "training/test_exactness.py", "training/test_distributed.py"),
    *("training/test_fsdp.py", "training/test_loading.py", "e2e/test_road.py", "test_gpu_check.py"),
    *("test_docs_commands.py", "training/test_presence.py", "kernels/test_packed_rows.py"),
)


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where there is none. The longest files come first, then those with slow tests, so that no
    worker ends with one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    slow_tests = Counter(item.path for item in items if item.get_closest_marker("slow"))
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path, len(places)), item.path not in slow_tests))


def pytest_collection_finish():
    """Let no collection of garbage go through what was imported: there are some that are asked for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_process_in_a_quick_test(request, monkeypatch):
    """A test that isn't marked `slow` launches no Python: `make test-quick` leaves out those that are."""
    begin = subprocess.Popen.__init__

    def launch(process, command, *more, **options):
        words = [command] if isinstance(command, str) else list(map(str, command))
        assert words[0] != sys.executable, "a test that launches Python is marked `slow`"
        begin(process, command, *more, **options)

    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(subprocess.Popen, "__init__", launch)


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
def no_wait_for_the_disk():
    """What tests write needn't outlive a power cut."""
    with mock.patch.object(os, "fsync", lambda descriptor: None):
        yield


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A contrastive run that tells four colours apart, and the folder of its images."""
    return train_on_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def make_config(tmp_path):
    """A function that writes the inputs of the demo and returns the settings; keyword arguments replace top-level keys."""
    return partial(demo_config, tmp_path)
