"""An endpoint that says what it was asked."""

import threading

import pytest

from tests.helpers.endpoint import FakeServer


@pytest.fixture
def server():
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
