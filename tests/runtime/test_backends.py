"""backends.py: which one is selected, that each returns the model's probabilities, and batches for a GPU."""

import ctypes
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from model import OnnxClassifier
from runtime import backends
from runtime.backends import Batcher, LatencyAndThroughput
from runtime.errors import BackendUnavailable, InvalidModel
from runtime.settings import ModelSettings
from tests.graphs import of_other_classes
from tests.server_process import DEADLINE_S, MODEL_PATH, NEWT, ROOT, TENCH, wait_until

OPENVINO = "OpenVINOExecutionProvider"
IMAGES = [TENCH, NEWT]


def works(provider):
    """Return whether the provider works on this machine."""
    try:
        OnnxClassifier(MODEL_PATH, provider)
    except BackendUnavailable:
        return False
    return True


needs_openvino = pytest.mark.skipif(not works("openvino"), reason="OpenVINO does not work on this machine")


@pytest.fixture(scope="module")
def cpu():
    return OnnxClassifier(MODEL_PATH, "cpu", threads=2)


def pixels_of(classifier, images=IMAGES):
    return np.stack([classifier.preprocessor(image) for image in images])


def test_every_provider_can_be_selected():
    choices = ModelSettings.__dataclass_fields__["EXECUTION_PROVIDER"].metadata["expected"]
    assert choices == f"one of auto, {', '.join(backends.BACKENDS)}"


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_pixels_of_one_channel_are_not_broadcast_to_three(cpu, provider):
    classifier, pixels = OnnxClassifier(MODEL_PATH, provider), pixels_of(cpu)
    with pytest.raises(Exception, match=r"incompatible|invalid dimensions"):
        classifier.predict(pixels[..., :1])
    assert classifier.predict(pixels).argmax(axis=1).tolist() == [0, 26]


@needs_openvino
def test_auto_prefers_openvino_to_the_cpu_provider(monkeypatch, caplog):
    monkeypatch.setattr(backends, "ctypes", SimpleNamespace(CDLL=lambda name: ctypes.CDLL(f"no-{name}")))
    with caplog.at_level(logging.INFO, "server"):
        assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == OPENVINO
    assert [record.getMessage() for record in caplog.records] == ["no NVIDIA GPU; using OpenVINO"]


@needs_openvino
def test_openvino_in_f32_matches_the_cpu_provider(cpu):
    classifier = OnnxClassifier(MODEL_PATH, "openvino", "f32", threads=2)
    assert classifier.runner.precision == "f32"
    np.testing.assert_allclose(classifier.predict(pixels_of(cpu)), cpu.predict(pixels_of(cpu)), atol=1e-4)


@needs_openvino
def test_openvino_in_auto_precision_stays_close(cpu):
    classifier = OnnxClassifier(MODEL_PATH, "openvino", "auto", threads=2)
    np.testing.assert_allclose(classifier.predict(pixels_of(cpu)), cpu.predict(pixels_of(cpu)), atol=0.1)


@needs_openvino
@pytest.mark.parametrize("size", [(375, 500), (1000, 800), (37, 1200), (1, 1)])
def test_pixels_of_another_size_never_reach_openvinos_resize(cpu, size):
    classifier = OnnxClassifier(MODEL_PATH, "openvino", "f32", threads=2)
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    expected = cpu.predict(cpu.preprocessor.resize(image[0])[None])
    np.testing.assert_allclose(classifier.predict(image), expected, atol=1e-4)


def call_concurrently(classifier, pixels, until):
    """Call from four threads until the condition holds, and then once more; return the last results."""
    with ThreadPoolExecutor(4) as pool:

        def call():
            return list(pool.map(classifier.predict, [pixels] * 8))

        wait_until(lambda: call() and until(), "the condition of the test")
        return call()


@pytest.fixture
def opened(monkeypatch):
    """The streams and threads of each model that ONNX Runtime or OpenVINO opens."""
    opened = []
    open_session = onnxruntime.InferenceSession

    def recording_session(path, options, providers):
        session = open_session(path, options, providers=providers)
        opened.append({"streams": None, "threads": options.intra_op_num_threads})
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording_session)
    if openvino := sys.modules.get("openvino"):
        compile_model = openvino.Core.compile_model

        def recording_compile(core, model, device, config):
            compiled = compile_model(core, model, device, config)
            opened.append({"streams": config["NUM_STREAMS"], "threads": config["INFERENCE_NUM_THREADS"]})
            return compiled

        monkeypatch.setattr(openvino.Core, "compile_model", recording_compile)
    return opened


@pytest.mark.parametrize(
    ("provider", "latency", "throughput"),
    [
        ("cpu", {"streams": None, "threads": 2}, {"streams": None, "threads": 1}),
        pytest.param("openvino", {"streams": 1, "threads": 2}, {"streams": 2, "threads": 2}, marks=needs_openvino),
    ],
)
def test_concurrent_calls_open_a_throughput_model(opened, provider, latency, throughput):
    classifier = OnnxClassifier(MODEL_PATH, provider, "f32", threads=2)
    pixels = pixels_of(classifier)
    alone = classifier.predict(pixels)
    assert opened == [latency]
    for result in call_concurrently(classifier, pixels, until=lambda: len(opened) > 1):
        np.testing.assert_allclose(result, alone, atol=1e-4)
    assert opened == [latency, throughput]


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_one_thread_needs_no_throughput_model(opened, provider):
    classifier = OnnxClassifier(MODEL_PATH, provider, "f32", threads=1)
    pixels = pixels_of(classifier)
    results = call_concurrently(classifier, pixels, until=lambda: True)
    for result in results:
        np.testing.assert_allclose(result, results[0], atol=1e-4)
    assert len(opened) == 1


def test_uses_the_available_cpus_by_default(opened, monkeypatch):
    monkeypatch.setattr("model.available_cpus", lambda: 3)
    OnnxClassifier(MODEL_PATH)
    assert opened[0]["threads"] == 3


class HeldRun:
    """A model whose first call waits for `go`; each returns the model's number."""

    def __init__(self, number):
        self.number = number
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, pixels):
        if not self.began.is_set():
            self.began.set()
            self.go.wait(DEADLINE_S)
        return np.full((1, 1), self.number)


ONE_IMAGE = np.zeros((1, 2, 2, 3), np.uint8)


@contextmanager
def call_in_progress(run, held):
    """Have a call in progress while the context lasts."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(run, ONE_IMAGE)
        assert held.began.wait(DEADLINE_S)
        yield
        held.go.set()
        call.result()


def test_only_concurrent_calls_use_the_throughput_model():
    latency, opened = HeldRun(1), []
    run = LatencyAndThroughput(latency, lambda: opened.append(HeldRun(2)) or opened[-1].go.set() or opened[-1])
    with call_in_progress(run, latency):
        assert not opened
        wait_until(lambda: run(ONE_IMAGE) == 2, "the throughput model is open")
        assert run(ONE_IMAGE) == 2
    assert run(ONE_IMAGE) == 1
    assert len(opened) == 1


def test_throughput_model_that_fails_to_open_is_one_warning(caplog):
    def fail():
        raise RuntimeError("no memory")

    latency = HeldRun(1)
    run = LatencyAndThroughput(latency, fail)
    with call_in_progress(run, latency):
        wait_until(lambda: run(ONE_IMAGE) == 1 and caplog.records, "it is logged")
        assert run(ONE_IMAGE) == 1
    assert [record.fields["reason"] for record in caplog.records] == ["no memory"]
    assert caplog.records[0].exc_info is None


def test_throughput_model_opens_later_if_no_thread_can_start(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    latency, throughput = HeldRun(1), HeldRun(2)
    run = LatencyAndThroughput(latency, lambda: throughput)
    with call_in_progress(run, latency), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            run(ONE_IMAGE)
    latency.began.clear()
    latency.go.clear()
    with call_in_progress(run, latency):
        throughput.go.set()
        wait_until(lambda: run(ONE_IMAGE) == 2, "the throughput model is open")
    assert run(ONE_IMAGE) == 1


def test_named_provider_that_does_not_work_is_an_error(monkeypatch):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    monkeypatch.setattr(backends, "ctypes", SimpleNamespace(CDLL=lambda name: Driver(0)))
    with pytest.raises(BackendUnavailable, match=r"execution provider cuda: .* install onnxruntime-gpu"):
        OnnxClassifier(MODEL_PATH, "cuda")


def test_auto_works_without_openvino_and_reports_it(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match="execution provider openvino: import of openvino halted"):
        OnnxClassifier(MODEL_PATH, "openvino")
    with caplog.at_level(logging.INFO, "server"):
        assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == "CPUExecutionProvider"
    [line] = [record.getMessage() for record in caplog.records]
    assert "openvino fails: import of openvino halted" in line
    assert line.endswith("; using CPU")


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
def test_bfloat16_is_requested_if_the_cpu_has_it(monkeypatch, tmp_path, precision, flags, asked):
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
def test_replaced_file_changes_nothing_until_a_restart(tmp_path, caplog, opened, provider, in_place):
    path, other = tmp_path / "served.onnx", tmp_path / "other.onnx"
    path.write_bytes(MODEL_PATH.read_bytes())
    other.write_bytes(MODEL_PATH.read_bytes())
    of_other_classes(other, [999, *range(1, 999), 0], "Softmax")
    classifier = OnnxClassifier(path, provider, "f32", threads=2)
    alone = classifier.predict(pixels_of(classifier))
    modified_ns = path.stat().st_mtime_ns
    os.utime(other, ns=(modified_ns, modified_ns))
    if in_place:
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(modified_ns, modified_ns))
    else:
        other.replace(path)
    pixels = pixels_of(classifier)
    results = call_concurrently(
        classifier, pixels, until=lambda: caplog.records if provider == "cpu" else len(opened) > 1
    )
    if provider == "cpu":
        assert "has changed since it was opened" in caplog.records[0].fields["reason"]
    for result in results:
        np.testing.assert_allclose(result, alone, atol=1e-4)


class Driver:
    def __init__(self, status):
        self.status = status

    def cuInit(self, flags):
        return self.status


@pytest.mark.parametrize(
    ("load", "why"),
    [(lambda name: ctypes.CDLL(f"no-{name}"), "no NVIDIA GPU"), (lambda name: Driver(100), "returns 100")],
)
def test_missing_gpu_is_noticed_before_onnx_runtime(monkeypatch, load, why):
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
def test_no_telemetry_is_sent(tmp_path, provider):
    # Telemetry keeps an identifier in the home folder.
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    folders = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"), str(tmp_path))
    environment = clean | folders | {"MODEL_PATH": str(MODEL_PATH), "EXECUTION_PROVIDER": provider}
    command = [sys.executable, "-c", TRACE + "import server, app, test_onnx, convert_to_onnx; app.init()"]
    result = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "socket." not in result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@needs_openvino
def test_onnx_runtime_is_not_imported_if_openvino_runs(tmp_path):
    code = f"import sys, model; model.OnnxClassifier({str(MODEL_PATH)!r}, 'auto'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {"onnxruntime", "openvino_telemetry", "openvino.tools.ovc"} & set(result.stdout.split())


def test_auto_skips_a_provider_that_returns_nonsense(monkeypatch, caplog):
    def nonsense(*arguments):
        runner = backends._open_cpu(*arguments)
        runner.provider = "NonsenseExecutionProvider"
        monkeypatch.setattr(runner, "run", lambda pixels: np.full((1, 1000), np.nan, np.float32))
        return runner

    monkeypatch.setitem(backends.BACKENDS, "openvino", nonsense)
    with caplog.at_level(logging.INFO, "server"):
        assert OnnxClassifier(MODEL_PATH, "auto").runner.provider == "CPUExecutionProvider"
    assert "NonsenseExecutionProvider does not return probabilities" in caplog.text
    with pytest.raises(InvalidModel, match="NonsenseExecutionProvider does not return probabilities"):
        OnnxClassifier(MODEL_PATH, "openvino")


class RecordingGpu:
    """Stands in for a GPU: sums each image, and holds every run until it is released."""

    def __init__(self, keep_rows=None):
        self.sizes = []
        self.keep_rows = keep_rows  # how many it returns; by default all
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, pixels):
        self.began.set()
        self.go.wait(DEADLINE_S)
        self.sizes.append(len(pixels))
        if pixels.max() == 255:
            raise RuntimeError("a broken batch")
        return pixels.reshape(len(pixels), -1).sum(1, dtype=np.float32, keepdims=True)[: self.keep_rows]


def call_in_thread(function, argument):
    """Call the function in a thread that does not keep a failed test from ending; return the future of its result."""
    future = Future()

    def call():
        try:
            future.set_result(function(argument))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def run_together(gpu, batches):
    """Call a batcher with each batch in its own thread while the GPU is held; return what each got."""
    batcher = Batcher(gpu)
    calls = [call_in_thread(batcher, batches[0])]
    wait_until(gpu.began.is_set, "the first is running")
    calls += [call_in_thread(batcher, batch) for batch in batches[1:]]
    wait_until(lambda: batcher.waiting.qsize() == sum(map(len, batches[1:])), "the others wait")
    gpu.go.set()
    return [call.exception(DEADLINE_S) or call.result() for call in calls]


def test_waiting_images_become_one_padded_batch():
    gpu = RecordingGpu()
    batches = [np.full((size, 2, 2, 3), size, np.uint8) for size in (1, 1, 2, 3)]
    results = run_together(gpu, batches)
    assert gpu.sizes == [1, 8]  # the first alone, then 1 + 2 + 3 padded to 8
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_array_equal(result, np.full((len(batch), 1), len(batch) * 12.0))


def test_no_batch_is_larger_than_the_largest_size():
    gpu = RecordingGpu()
    results = run_together(gpu, [np.ones((size, 2, 2, 3), np.uint8) for size in (1, 30, 20, 20)])
    assert gpu.sizes == [1, 32, 32, 8]
    assert [len(result) for result in results] == [1, 30, 20, 20]


def test_failed_batch_fails_its_callers_and_no_later_ones():
    gpu = RecordingGpu()
    fine, broken = np.ones((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    results = run_together(gpu, [fine, broken, fine])
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[2], RuntimeError)
    assert Batcher(gpu)(fine).shape == (1, 1)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_too_few_rows_are_an_error_for_every_caller(rows):
    gpu = RecordingGpu(keep_rows=rows)
    results = run_together(gpu, [np.ones((1, 2, 2, 3), np.uint8)] * 9)
    assert gpu.sizes == [1, 8]
    assert all(isinstance(result, ValueError) for result in results[1:])
