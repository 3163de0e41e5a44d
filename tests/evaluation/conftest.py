"""An endpoint that says what it was asked."""

import pytest

from tests.helpers.endpoint import serving


@pytest.fixture
def server():
    with serving() as server:
        yield server
