"""Servers that several tests share."""

from collections.abc import Iterator

import pytest

from tests.serving import Served, is_ready, serving, wait_until


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server with the real model, ready, open to everyone."""
    with serving(tmp_path_factory.mktemp("served")) as served:
        wait_until(lambda: is_ready(served), "the server is ready")
        yield served
