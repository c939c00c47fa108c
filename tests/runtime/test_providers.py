"""providers.py: the provider that is picked, that each gives the model's answers, and batching for a GPU."""

import ctypes
import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from model import OnnxClassifier
from runtime import providers
from runtime.errors import InvalidModel, ProviderUnavailable
from runtime.providers import BatchRunner
from tests.server_process import MODEL_PATH, NEWT, ROOT, TENCH, wait_until

OPENVINO = "OpenVINOExecutionProvider"
PICTURES = [TENCH, NEWT]


def works(provider):
    """Return whether the provider works on this machine."""
    try:
        OnnxClassifier(MODEL_PATH, provider)
    except ProviderUnavailable:
        return False
    return True


needs_openvino = pytest.mark.skipif(not works("openvino"), reason="OpenVINO's provider is for x86-64 Linux")


@pytest.fixture(scope="module")
def cpu():
    return OnnxClassifier(MODEL_PATH, "cpu", threads=2)


def pixels_of(classifier, pictures=PICTURES):
    return np.stack([classifier.preprocessor(picture) for picture in pictures])


@needs_openvino
def test_auto_takes_openvino_before_the_cpu_provider():
    assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == OPENVINO


@needs_openvino
def test_openvino_in_f32_gives_the_cpu_providers_probabilities(cpu):
    classifier = OnnxClassifier(MODEL_PATH, "openvino", "f32", threads=2)
    assert classifier.runner.precision == "f32"
    np.testing.assert_allclose(classifier.predict(pixels_of(cpu)), cpu.predict(pixels_of(cpu)), atol=1e-4)


@needs_openvino
def test_openvino_by_itself_stays_near(cpu):
    classifier = OnnxClassifier(MODEL_PATH, "openvino", "auto", threads=2)
    np.testing.assert_allclose(classifier.predict(pixels_of(cpu)), cpu.predict(pixels_of(cpu)), atol=0.1)


@needs_openvino
@pytest.mark.parametrize("size", [(375, 500), (1000, 800), (37, 1200), (1, 1)])
def test_pixels_of_another_size_never_reach_openvinos_resize(cpu, size):
    classifier = OnnxClassifier(MODEL_PATH, "openvino", "f32", threads=2)
    picture = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    expected = cpu.predict(cpu.preprocessor.resize(picture[0])[None])
    np.testing.assert_allclose(classifier.predict(picture), expected, atol=1e-4)


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_runs_among_many_come_to_the_same_as_runs_alone(provider):
    classifier = OnnxClassifier(MODEL_PATH, provider, "f32", threads=2)
    alone = classifier.predict(pixels_of(classifier))
    classifier.runner._running += 1  # as if there were another run all the time
    classifier.predict(pixels_of(classifier))
    wait_until(lambda: classifier.runner._for_many is not classifier.runner.session, "the second session is there")
    np.testing.assert_allclose(classifier.predict(pixels_of(classifier)), alone, atol=1e-4)


def test_a_provider_asked_for_by_name_is_an_error_where_it_does_not_work():
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    with pytest.raises(ProviderUnavailable, match="install onnxruntime-gpu"):
        OnnxClassifier(MODEL_PATH, "cuda")


class Driver:
    def __init__(self, status):
        self.status = status

    def cuInit(self, flags):
        return self.status


@pytest.mark.parametrize(
    ("load", "why"),
    [(lambda name: ctypes.CDLL(f"no-{name}"), "no GPU with its driver"), (lambda name: Driver(100), "returns 100")],
)
def test_a_gpu_that_is_not_there_is_known_before_onnx_runtime_is_asked(monkeypatch, load, why):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(providers, "ctypes", SimpleNamespace(CDLL=load))
    with pytest.raises(ProviderUnavailable, match=why):
        OnnxClassifier(MODEL_PATH, "cuda")


@pytest.mark.parametrize("module", ["server", "convert_to_onnx", "test_onnx"])
def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path, module):
    # What it would report by, it writes into the home folder as soon as it is imported.
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = clean | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, env=environment, check=True)
    assert [path for path in tmp_path.rglob("*") if path.name in ("deviceid", "onnxruntime.db")] == []


def test_auto_passes_over_a_provider_that_answers_nonsense_and_says_so(monkeypatch, caplog):
    def nonsense(*arguments):
        runner = providers._open_cpu(*arguments)
        runner.provider = "NonsenseExecutionProvider"
        monkeypatch.setattr(runner, "run", lambda pixels: np.full((1, 1000), np.nan, np.float32))
        return runner

    monkeypatch.setitem(providers.OPENERS, "openvino", nonsense)
    with caplog.at_level(logging.INFO, "server"):
        assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == "CPUExecutionProvider"
    assert any(record.fields["provider"] == "openvino" for record in caplog.records)
    with pytest.raises(InvalidModel, match="NonsenseExecutionProvider does not give the probabilities"):
        OnnxClassifier(MODEL_PATH, "openvino")


class RecordingSession:
    """Stands in for a GPU's session: sums each picture, and holds every run until it is let go."""

    def __init__(self):
        self.sizes = []
        self.go = threading.Event()

    def run(self, outputs, inputs):
        self.go.wait()
        self.sizes.append(len(inputs["image"]))
        if inputs["image"].max() == 255:
            raise providers.ort_errors.Fail("a broken batch")
        return [inputs["image"].reshape(len(inputs["image"]), -1).sum(1, dtype=np.float32, keepdims=True)]


def run_together(runner, batches):
    """Run each batch in a thread of its own while the GPU is held; return what each got."""
    results = {}

    def run(n, pixels):
        try:
            results[n] = runner.run(pixels)
        except providers.ort_errors.Fail as error:
            results[n] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(batches)]
    threads[0].start()
    wait_until(lambda: runner._gpu.locked(), "the first is in work")
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(runner._waiting) == len(batches) - 1, "the others wait")
    runner.session.go.set()
    for thread in threads:
        thread.join()
    return [results[n] for n in range(len(batches))]


def test_runs_that_wait_together_become_one_padded_batch():
    runner = BatchRunner("test", "f32", RecordingSession())
    batches = [np.full((size, 2, 2, 3), size, np.uint8) for size in (1, 1, 2, 3)]
    results = run_together(runner, batches)
    assert runner.session.sizes == [1, 8]  # the first alone, then 1 + 2 + 3 padded to 8
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_array_equal(result, np.full((len(batch), 1), len(batch) * 12.0))


def test_no_batch_is_larger_than_the_largest_size():
    runner = BatchRunner("test", "f32", RecordingSession())
    results = run_together(runner, [np.ones((size, 2, 2, 3), np.uint8) for size in (30, 20, 20)])
    assert runner.session.sizes == [32, 32, 32]
    assert [len(result) for result in results] == [30, 20, 20]
    runner.run(np.ones((40, 2, 2, 3), np.uint8))
    assert runner.session.sizes[3:] == [32, 8]


def test_a_failed_batch_fails_each_run_in_it_and_none_after():
    runner = BatchRunner("test", "f32", RecordingSession())
    fine, broken = np.ones((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    results = run_together(runner, [fine, broken, fine])
    assert isinstance(results[1], providers.ort_errors.Fail)
    assert isinstance(results[2], providers.ort_errors.Fail)
    assert runner.run(fine).shape == (1, 1)
