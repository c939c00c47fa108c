"""What several tests share: the real server, and files of other models."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.graphs import of_other_classes
from tests.server_process import Served, ready

collect_ignore = ["deploy"]  # which needs Ray, and of what is here nothing: `make test-ray`

# A shell in the background has the first ignored, and nohup the second, also by every program that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Make warnings errors in these tests, but not where a user runs test_onnx.py beside any other plugin."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server with the real model, ready, open to everyone."""
    with ready(tmp_path_factory.mktemp("served")) as served:
        yield served


# Name: its classes of ImageNet, its last step, and the ids of the two preset images' classes.
OTHER_MODELS = {
    "one class": ([0], "Softmax", 0, 0),
    "5 classes with sigmoid": ([999, 26, 5, 0, 7], "Sigmoid", 3, 1),
    "10000 classes": ([*range(900, 1000)] * 90 + [*range(1000)], "Softmax", 9000, 9026),
}


@pytest.fixture(params=OTHER_MODELS)
def other_model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, int]:
    """Give a classifier of other classes, and the ids in it of the two preset images' classes."""
    class_ids, activation, tench, newt = OTHER_MODELS[request.param]
    return of_other_classes(tmp_path / "other.onnx", class_ids, activation), tench, newt
