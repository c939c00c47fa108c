"""backends.py: the provider that is picked, that each gives the model's answers, and batching for a GPU."""

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
from runtime import backends
from runtime.backends import BatchRunner
from runtime.errors import BackendUnavailable, InvalidModel
from runtime.settings import ModelSettings
from tests.graphs import of_other_classes
from tests.server_process import MODEL_PATH, NEWT, ROOT, TENCH, wait_until

OPENVINO = "OpenVINOExecutionProvider"
PICTURES = [TENCH, NEWT]


def works(provider):
    """Return whether the provider works on this machine."""
    try:
        OnnxClassifier(MODEL_PATH, provider)
    except BackendUnavailable:
        return False
    return True


needs_openvino = pytest.mark.skipif(not works("openvino"), reason="openvino does not work on this machine")


@pytest.fixture(scope="module")
def cpu():
    return OnnxClassifier(MODEL_PATH, "cpu", threads=2)


def pixels_of(classifier, pictures=PICTURES):
    return np.stack([classifier.preprocessor(picture) for picture in pictures])


def test_every_provider_can_be_asked_for():
    choices = ModelSettings.__dataclass_fields__["EXECUTION_PROVIDER"].metadata["expected"]
    assert choices == f"one of auto, {', '.join(backends.BACKENDS)}"


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_pixels_of_one_channel_are_an_error_and_not_spread_over_three(provider):
    classifier = OnnxClassifier(MODEL_PATH, provider)
    with pytest.raises(Exception, match=r"wrong shape|invalid dimensions"):
        classifier.predict(np.zeros((1, *classifier.preprocessor.size, 1), np.uint8))


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
    wait_until(lambda: classifier.runner._run_among_many, "the second is open")
    np.testing.assert_allclose(classifier.predict(pixels_of(classifier)), alone, atol=1e-4)


def test_a_provider_asked_for_by_name_is_an_error_where_it_does_not_work(monkeypatch):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    monkeypatch.setattr(backends, "ctypes", SimpleNamespace(CDLL=lambda name: Driver(0)))
    with pytest.raises(BackendUnavailable, match=r"execution provider cuda: .* install onnxruntime-gpu"):
        OnnxClassifier(MODEL_PATH, "cuda")


def test_openvino_that_is_not_there_is_named_and_auto_does_without(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match="execution provider openvino: import of openvino halted"):
        OnnxClassifier(MODEL_PATH, "openvino")
    with caplog.at_level(logging.INFO, "server"):
        assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == "CPUExecutionProvider"
    reasons = {record.fields["provider"]: record.fields["reason"] for record in caplog.records}
    assert "openvino" in reasons["openvino"]


@needs_openvino
@pytest.mark.parametrize(
    ("precision", "flags", "asked"),
    [
        ("auto", "avx512_bf16", "bf16"),
        ("auto", "amx_bf16", "bf16"),
        ("auto", "avx512f", "f32"),
        ("f32", "amx_bf16", "f32"),
    ],
)
def test_bfloat16_is_asked_for_by_name_where_the_cpu_has_it_and_openvino_says_what_it_does(
    monkeypatch, tmp_path, precision, flags, asked
):
    import openvino

    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} avx2\n")
    monkeypatch.setattr(backends, "CPUINFO", tmp_path / "cpuinfo")
    compile_model, compiled = openvino.Core.compile_model, []

    def recording(core, model, device, config):
        compiled.append((config["INFERENCE_PRECISION_HINT"], compile_model(core, model, device, config)))
        return compiled[-1][1]

    monkeypatch.setattr(openvino.Core, "compile_model", recording)
    classifier = OnnxClassifier(MODEL_PATH, "openvino", precision)
    [(hint, model)] = compiled
    assert hint == asked
    assert classifier.runner.precision == model.get_property("INFERENCE_PRECISION_HINT").to_string()
    steps = {step.get_rt_info()["layerType"].astype(str) for step in model.get_runtime_model().get_ops()}
    assert "Convolution" in steps
    assert not steps & {"If", "Interpolate"}  # pixels of the model's size are not resized


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_replaced_while_it_is_served_changes_nothing(tmp_path, caplog, provider, in_place):
    path, other = tmp_path / "served.onnx", tmp_path / "other.onnx"
    path.write_bytes(MODEL_PATH.read_bytes())
    other.write_bytes(MODEL_PATH.read_bytes())
    of_other_classes(other, [999, *range(1, 999), 0], "Softmax")
    classifier = OnnxClassifier(path, provider, "f32", threads=2)
    alone = classifier.predict(pixels_of(classifier))
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    classifier.runner._running += 1  # as if there were another run all the time
    classifier.predict(pixels_of(classifier))
    if provider == "cpu":
        wait_until(lambda: caplog.records, "the second is refused")
        assert "has changed since it was opened" in caplog.records[0].fields["reason"]
    else:
        wait_until(lambda: classifier.runner._run_among_many, "the second is open")
    np.testing.assert_allclose(classifier.predict(pixels_of(classifier)), alone, atol=1e-4)


def test_a_second_session_that_cannot_be_opened_is_one_line_and_the_first_goes_on(caplog):
    def fail():
        raise RuntimeError("no memory")

    classifier = OnnxClassifier(MODEL_PATH, "cpu", threads=2)
    classifier.runner.open_for_many = fail
    alone = classifier.predict(pixels_of(classifier))
    classifier.runner._running += 1  # as if there were another run all the time
    np.testing.assert_array_equal(classifier.predict(pixels_of(classifier)), alone)
    wait_until(lambda: caplog.records, "it is logged")
    np.testing.assert_array_equal(classifier.predict(pixels_of(classifier)), alone)
    assert [record.fields["reason"] for record in caplog.records] == ["no memory"]
    assert caplog.records[0].exc_info is None


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
    monkeypatch.setattr(backends, "ctypes", SimpleNamespace(CDLL=load))
    with pytest.raises(BackendUnavailable, match=why):
        OnnxClassifier(MODEL_PATH, "cuda")


TRACE = """
import sys
def trace(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print(event, arguments, file=sys.stderr)
sys.addaudithook(trace)
"""


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_nothing_is_reported_to_anyone(tmp_path, provider):
    # Who reports keeps an identifier in the home folder.
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    folders = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"), str(tmp_path))
    environment = clean | folders | {"MODEL_PATH": str(MODEL_PATH), "EXECUTION_PROVIDER": provider}
    command = [sys.executable, "-c", TRACE + "import server, app, test_onnx, convert_to_onnx; app.init()"]
    result = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "socket." not in result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@needs_openvino
def test_onnx_runtime_is_not_imported_where_openvino_runs_the_model(tmp_path):
    code = f"import sys, model; model.OnnxClassifier({str(MODEL_PATH)!r}, 'auto'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {"onnxruntime", "openvino_telemetry", "openvino.tools.ovc"} & set(result.stdout.split())


def test_auto_passes_over_a_provider_that_answers_nonsense_and_says_so(monkeypatch, caplog):
    def nonsense(*arguments):
        runner = backends._open_cpu(*arguments)
        runner.provider = "NonsenseExecutionProvider"
        monkeypatch.setattr(runner, "run", lambda pixels: np.full((1, 1000), np.nan, np.float32))
        return runner

    monkeypatch.setitem(backends.BACKENDS, "openvino", nonsense)
    with caplog.at_level(logging.INFO, "server"):
        assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == "CPUExecutionProvider"
    assert any(record.fields["provider"] == "openvino" for record in caplog.records)
    with pytest.raises(InvalidModel, match="NonsenseExecutionProvider does not give the probabilities"):
        OnnxClassifier(MODEL_PATH, "openvino")


class RecordingGpu:
    """Stands in for a GPU: sums each picture, and holds every run until it is let go."""

    def __init__(self):
        self.sizes = []
        self.go = threading.Event()

    def __call__(self, pixels):
        self.go.wait()
        self.sizes.append(len(pixels))
        if pixels.max() == 255:
            raise RuntimeError("a broken batch")
        return pixels.reshape(len(pixels), -1).sum(1, dtype=np.float32, keepdims=True)


def run_together(runner, batches):
    """Run each batch in a thread of its own while the GPU is held; return what each got."""
    results = {}

    def run(n, pixels):
        try:
            results[n] = runner.run(pixels)
        except RuntimeError as error:
            results[n] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(batches)]
    threads[0].start()
    wait_until(lambda: runner._gpu.locked(), "the first is in work")
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(runner._waiting) == sum(map(len, batches[1:])), "the others wait")
    runner.run_alone.go.set()
    for thread in threads:
        thread.join()
    return [results[n] for n in range(len(batches))]


def test_runs_that_wait_together_become_one_padded_batch():
    runner = BatchRunner("test", "f32", None, RecordingGpu())
    batches = [np.full((size, 2, 2, 3), size, np.uint8) for size in (1, 1, 2, 3)]
    results = run_together(runner, batches)
    assert runner.run_alone.sizes == [1, 8]  # the first alone, then 1 + 2 + 3 padded to 8
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_array_equal(result, np.full((len(batch), 1), len(batch) * 12.0))


def test_no_batch_is_larger_than_the_largest_size():
    runner = BatchRunner("test", "f32", None, RecordingGpu())
    results = run_together(runner, [np.ones((size, 2, 2, 3), np.uint8) for size in (30, 20, 20)])
    assert runner.run_alone.sizes == [32, 32, 8]
    assert [len(result) for result in results] == [30, 20, 20]


def test_a_failed_batch_fails_each_run_in_it_and_none_after():
    runner = BatchRunner("test", "f32", None, RecordingGpu())
    fine, broken = np.ones((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    results = run_together(runner, [fine, broken, fine])
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[2], RuntimeError)
    assert runner.run(fine).shape == (1, 1)
