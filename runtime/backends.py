"""Backends (CUDA, OpenVINO, ONNX Runtime's CPU provider): run an ONNX file on the fastest that works here."""

import ctypes
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import memory
from runtime.errors import BackendUnavailable, InvalidModel
from runtime.metadata import Metadata, parse

logger = logging.getLogger("server")

CPUINFO = Path("/proc/cpuinfo")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)  # the only sizes a GPU sees, because it plans again for every new one
Run = Callable[[np.ndarray], np.ndarray]  # uint8 [batch, height, width, 3] to probabilities, float32 [batch, classes]


@dataclass
class Runner:
    """A model that a backend has opened."""

    provider: str  # ONNX Runtime's name for the backend
    precision: str  # f32, bf16 or tf32
    metadata: Metadata
    run: Run
    any_size: bool = False  # otherwise pixels must have the model's size


class LatencyAndThroughput:
    """A model opened twice on a CPU: with all threads for a lone call, with one thread per image for concurrent calls.

    The second is opened in the background by the first concurrent call, so that a single caller never pays for it;
    until it is open the first runs everything. Batching gains nothing on a CPU: images run one by one.
    """

    def __init__(self, latency: Run, open_throughput: Callable[[], Run]) -> None:
        self._latency = self._throughput = latency
        self._open_throughput = open_throughput
        self._has_begun_opening = False
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        with self._lock:
            is_alone = self._running == 0
            if not is_alone and not self._has_begun_opening:
                threading.Thread(target=self._open).start()
                self._has_begun_opening = True
            self._running += 1
        run = self._latency if is_alone else self._throughput
        try:
            return np.concatenate([run(image[None]) for image in pixels])
        finally:
            with self._lock:
                self._running -= 1

    def _open(self) -> None:
        try:
            self._throughput = self._open_throughput()
        except Exception as error:  # the backend's own
            logger.warning("concurrent calls keep the first model", extra={"fields": {"reason": str(error)}})
        memory.trim_heap()


class Batcher:
    """A model on a GPU, run by one thread: waiting images, all of one size, become a batch padded to BATCH_SIZES."""

    def __init__(self, run: Run) -> None:
        self.waiting: queue.SimpleQueue[tuple[np.ndarray, Future]] = queue.SimpleQueue()
        self._run = run
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        rows: list[Future] = [Future() for _ in pixels]
        for image, row in zip(pixels, rows, strict=True):
            self.waiting.put((image, row))
        return np.stack([row.result() for row in rows])

    def _work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < BATCH_SIZES[-1] and not self.waiting.empty():
                batch.append(self.waiting.get())
            images, rows = zip(*batch, strict=True)
            size = next(size for size in BATCH_SIZES if size >= len(batch))
            try:
                results = self._run(np.pad(np.stack(images), [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)]))
                if len(results) != size:
                    raise ValueError(f"the backend returned {len(results)} rows for a batch of {size}")
                for row, result in zip(rows, results, strict=False):  # without the padding's
                    row.set_result(result)
            except Exception as error:  # the backend's own: no caller in the batch may wait forever
                for row in rows:
                    row.set_exception(error)


def open_runner(path: Path, provider: str, precision: str, threads: int) -> Runner:
    """Open the model on one of BACKENDS; `auto` is the first that works.

    With `precision` auto OpenVINO computes in bfloat16 on a CPU that has it, and CUDA in TF32; with f32 neither does.
    Raises BackendUnavailable if the backend named does not work, and InvalidModel.
    """
    memory.configure_malloc()
    *faster, last = BACKENDS if provider == "auto" else [provider]  # whose error is raised
    skipped: list[str] = []
    for name in faster:
        try:
            return _open(name, path, precision, threads, skipped)
        except Exception as error:  # the backend's own, with no base class in common
            skipped.append(str(error) if isinstance(error, BackendUnavailable) else f"{name} fails: {error}")
    try:
        return _open(last, path, precision, threads, skipped)
    except (BackendUnavailable, ImportError) as error:
        raise BackendUnavailable(f"execution provider {last}: {error}; auto uses the fastest that works") from error
    except Exception as error:
        raise InvalidModel(f"{path} was not written by convert_to_onnx.py, or {last} fails: {error}") from error


def _open(name: str, path: Path, precision: str, threads: int, skipped: list[str]) -> Runner:
    # Runs it once, because a backend may open a model and then fail on it.
    runner = BACKENDS[name](path, precision, threads)
    size, classes = runner.metadata.preprocessing.size, len(runner.metadata.class_names)
    rows = runner.run(np.full((1, *size, 3), 127, np.uint8))
    if rows.shape != (1, classes) or not ((rows >= 0) & (rows <= 1.001)).all():
        raise ValueError(f"{runner.provider} does not return probabilities of {classes} classes")
    memory.trim_heap()
    if skipped:
        logger.info("%s; using %s", "; ".join(skipped), runner.provider.removesuffix("ExecutionProvider"))
    return runner


def import_onnxruntime() -> Any:
    """Import ONNX Runtime only when it is needed, as that takes long, and without its telemetry."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # its errors hold what it would print
    return onnxruntime


def _open_session(path: Path, threads: int, providers: list) -> tuple[Any, Run]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning takes CPU time from decoding
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    return session, lambda pixels: session.run(["probabilities"], {"image": pixels})[0]


def _open_cpu(path: Path, precision: str, threads: int) -> Runner:
    name = "CPUExecutionProvider"
    changed = path.stat().st_ctime_ns
    session, latency = _open_session(path, threads, [name])

    def open_throughput() -> Run:
        throughput = _open_session(path, 1, [name])[1]
        if path.stat().st_ctime_ns != changed:  # two different models would serve
            raise InvalidModel(f"{path} has changed since it was opened: restart the server")
        return throughput

    run = LatencyAndThroughput(latency, open_throughput if threads > 1 else lambda: latency)
    return Runner(name, "f32", parse(session.get_modelmeta().custom_metadata_map), run, any_size=True)


def _open_openvino(path: Path, precision: str, threads: int) -> Runner:
    # Skips openvino.tools, which takes half the time of the import and has telemetry.
    sys.modules.setdefault("openvino.tools", None)  # type: ignore[arg-type]
    import openvino.frontend

    # Not Core.read_model: for a file that is not ONNX it tries other formats, and TensorFlow's writes to stderr.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    model = frontend.convert(frontend.load(path))
    texts = model.get_rt_info()["framework"] if model.has_rt_info("framework") else {}
    metadata = parse({name: text.value for name, text in texts.items()})
    model.reshape([1, *metadata.preprocessing.size, 3])  # faster than any size
    # By default OpenVINO uses bfloat16 only with AMX, and on request even on CPUs that emulate it slowly.
    flags = CPUINFO.read_text().split() if precision == "auto" and CPUINFO.exists() else []
    hint = "f32" if {"avx512_bf16", "amx_bf16"}.isdisjoint(flags) else "bf16"
    # Not pinned: both models would pin their threads to the same cores.
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "ENABLE_CPU_PINNING": False}

    def compile_model(streams: int) -> openvino.CompiledModel:
        return openvino.Core().compile_model(model, "CPU", config | {"NUM_STREAMS": streams})

    compiled = compile_model(1)
    latency = InferRequest(compiled)
    run = LatencyAndThroughput(latency, lambda: InferRequest(compile_model(threads)) if threads > 1 else latency)
    computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Runner("OpenVINOExecutionProvider", computes_in, metadata, run)


class InferRequest(threading.local):
    """OpenVINO's infer request, one per thread; each is kept, because creating one waits for those that are running."""

    def __init__(self, compiled: Any) -> None:  # called again, with the same model, by each thread
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self._request.infer(pixels, share_inputs=True)[0]


def _open_cuda(path: Path, precision: str, threads: int) -> Runner:
    # ONNX Runtime would notice too, but its import takes long and it prints ten lines about it.
    try:
        status = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError as error:  # its driver is not installed, or not in this container
        raise BackendUnavailable("no NVIDIA GPU") from error
    if status:
        raise BackendUnavailable(f"the NVIDIA driver finds no GPU that it can use (cuInit returns {status})")
    onnxruntime = import_onnxruntime()
    name = "CUDAExecutionProvider"
    if name not in onnxruntime.get_available_providers():
        raise BackendUnavailable("this build of ONNX Runtime has no CUDA: install onnxruntime-gpu")
    onnxruntime.preload_dlls()
    # HEURISTIC skips a search of half a second for every new shape.
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0" if precision == "f32" else "1"}
    session, run = _open_session(path, threads, [(name, options), "CPUExecutionProvider"])
    if session.get_providers()[0] != name:  # a session falls back without an error
        raise BackendUnavailable(f"ONNX Runtime opened the model with {session.get_providers()[0]} instead of CUDA")
    metadata = parse(session.get_modelmeta().custom_metadata_map)
    return Runner(name, "f32" if precision == "f32" else "tf32", metadata, Batcher(run))


# Fastest first; if none works, the last one's error is raised.
BACKENDS = {"cuda": _open_cuda, "openvino": _open_openvino, "cpu": _open_cpu}
