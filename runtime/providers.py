"""Execution providers: run an ONNX file on the fastest that really works here, and say which that is.

What is fastest for one caller, all threads on one picture, is not what is fastest for many, a thread for each picture:
on a CPU there are two sessions, and every run takes the one that suits. On a GPU the runs that wait become one batch.
"""

import ctypes
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Before the import, at which ONNX Runtime begins to report to its maker, under an identifier that it keeps on the disk.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from runtime import memory
from runtime.errors import ProviderUnavailable

logger = logging.getLogger("server")

# ONNX Runtime's errors have no base class of their own.
ONNX_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

BATCH_SIZES = (1, 2, 4, 8, 16, 32)  # a GPU plans anew for every size that it has not seen, so it sees these alone


class Runner:
    """A model on one execution provider. `any_size` says whether the graph's own resize is right there.

    `open_session(streams)` opens a session that works on as many pictures at a time, with all threads between them.
    """

    def __init__(
        self,
        provider: str,
        precision: str,
        any_size: bool,
        threads: int,
        open_session: Callable[[int], onnxruntime.InferenceSession],
    ) -> None:
        self.provider = provider
        self.precision = precision
        self.any_size = any_size
        self._open_session = open_session
        self.session = self._for_many = self._open(1)
        self._opening = threading.Thread(target=self._open_for_many, args=(threads,))
        self._to_open = threading.Semaphore(1 if threads > 1 else 0)
        self._running = 0
        self._count = threading.Lock()

    def _open(self, streams: int) -> onnxruntime.InferenceSession:
        session = self._open_session(streams)
        memory.return_all()
        return session

    def _open_for_many(self, threads: int) -> None:
        self._for_many = self._open(threads)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of uint8 [batch, height, width, 3].

        A run beside which no other is going on has all threads. Batching brings nothing on a CPU, and a fixed batch of
        one is faster than any.
        """
        with self._count:
            self._running += 1
            alone = self._running == 1
        try:
            if not alone and self._to_open.acquire(blocking=False):
                # Once, when there first are many, and in the background: whoever has one caller never pays for it.
                self._opening.start()
            session = self.session if alone else self._for_many
            rows = [session.run(["probabilities"], {"image": image[None]})[0] for image in pixels]
        finally:
            with self._count:
                self._running -= 1
        return rows[0] if len(rows) == 1 else np.concatenate(rows)


@dataclass
class _Waiting:
    pixels: np.ndarray
    result: np.ndarray | BaseException | None = None


@dataclass
class BatchRunner:
    """A model on a GPU: the runs that wait while it works become one batch, padded to one of BATCH_SIZES.

    There is no thread for it: whichever waiting run gets the GPU first takes the others with it.
    """

    provider: str
    precision: str
    session: onnxruntime.InferenceSession
    any_size: bool = False
    _waiting: list[_Waiting] = field(default_factory=list)
    _list: threading.Lock = field(default_factory=threading.Lock)
    _gpu: threading.Lock = field(default_factory=threading.Lock)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of uint8 [batch, height, width, 3] of the model's size."""
        parts = [_Waiting(pixels[i : i + BATCH_SIZES[-1]]) for i in range(0, len(pixels), BATCH_SIZES[-1])]
        with self._list:
            self._waiting += parts
        for part in parts:
            with self._gpu:
                while part.result is None:
                    self._run_batch()
            if isinstance(part.result, BaseException):
                raise part.result
        return np.concatenate([part.result for part in parts])

    def _run_batch(self) -> None:
        with self._list:
            taken = [self._waiting.pop(0)]
            while self._waiting and sum(len(p.pixels) for p in [*taken, self._waiting[0]]) <= BATCH_SIZES[-1]:
                taken.append(self._waiting.pop(0))
        pixels = np.concatenate([part.pixels for part in taken])
        size = next(size for size in BATCH_SIZES if size >= len(pixels))
        padded = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])
        try:
            rows = self.session.run(["probabilities"], {"image": padded})[0]
        except ONNX_ERRORS as error:
            for part in taken:
                part.result = error
            return
        for part in taken:
            part.result, rows = rows[: len(part.pixels)], rows[len(part.pixels) :]


def open_runner(
    path: str,
    size: tuple[int, int],
    provider: str,
    precision: str,
    threads: int,
    check: Callable[[Runner | BatchRunner], None],
) -> Runner | BatchRunner:
    """Open the model, whose input has `size` (height, width), on a provider.

    With `auto` it is the first of cuda, openvino and cpu that works, and it works if `check` does not raise ValueError:
    a provider can load a model and then fail on it. With `precision` auto OpenVINO may compute in bfloat16 and CUDA in
    TF32, with f32 neither. Raises ProviderUnavailable for a provider that
    was named, and for a file that cannot be run at all what `check` raises or one of ONNX_ERRORS.
    """
    memory.return_large()
    *preferred, last = ("cuda", "openvino", "cpu") if provider == "auto" else (provider,)
    for name in preferred:
        try:
            runner = OPENERS[name](path, size, precision, threads)
            check(runner)
            return runner
        except (ProviderUnavailable, ValueError, *ONNX_ERRORS) as error:
            logger.info("execution provider not used", extra={"fields": {"provider": name, "reason": str(error)}})
    runner = OPENERS[last](path, size, precision, threads)
    check(runner)
    return runner


def _open_cpu(path: str, size: tuple[int, int], precision: str, threads: int) -> Runner:
    def open_session(streams: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads // streams
        # A thread that spins while it waits takes a core from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return Runner("CPUExecutionProvider", "f32", True, threads, open_session)


def _open_openvino(path: str, size: tuple[int, int], precision: str, threads: int) -> Runner:
    name = "OpenVINOExecutionProvider"
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError as error:
        raise ProviderUnavailable("install onnxruntime-ep-openvino, which is there for x86-64 Linux") from error
    try:
        if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except ONNX_ERRORS as error:
        raise ProviderUnavailable(f"the plugin cannot be loaded: {error}") from error
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name and d.device.type == cpu]
    if not devices:
        raise ProviderUnavailable("it finds no CPU that it can use")

    def open_session(streams: int) -> onnxruntime.InferenceSession:
        # Two sessions that pin their threads would pin them to the same cores.
        config = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads), "ENABLE_CPU_PINNING": "NO"}
        if precision == "f32":
            config["INFERENCE_PRECISION_HINT"] = "f32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for dimension, length in zip(("batch", "height", "width"), (1, *size), strict=True):
            options.add_free_dimension_override_by_name(dimension, length)
        options.add_provider_for_devices(devices[:1], {"load_config": json.dumps({"CPU": config})})
        return onnxruntime.InferenceSession(path, options)

    has_bfloat16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    computes_in = "bf16" if precision == "auto" and has_bfloat16 else "f32"
    # Its Resize ignores `antialias`.
    runner = Runner(name, computes_in, False, threads, open_session)
    _require(runner.session, name)
    return runner


def _open_cuda(path: str, size: tuple[int, int], precision: str, threads: int) -> BatchRunner:
    name = "CUDAExecutionProvider"
    if name not in onnxruntime.get_available_providers():
        raise ProviderUnavailable("this build of ONNX Runtime has none: install onnxruntime-gpu")
    _require_gpu()
    onnxruntime.preload_dlls()
    # HEURISTIC does without half a second of search for every new shape.
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0" if precision == "f32" else "1"}
    session = onnxruntime.InferenceSession(path, providers=[(name, options), "CPUExecutionProvider"])
    _require(session, name)
    return BatchRunner(name, "f32" if precision == "f32" else "tf32", session)


def _require_gpu() -> None:
    # ONNX Runtime would find out as well, but say so in ten lines of its own.
    try:
        status = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError as error:
        raise ProviderUnavailable(f"there is no GPU with its driver here: {error}") from error
    if status:
        raise ProviderUnavailable(f"the driver finds no GPU that it can use: cuInit returns {status}")


def _require(session: onnxruntime.InferenceSession, name: str) -> None:
    # What a session was opened with is not always what it got.
    if session.get_providers()[0] != name:
        raise ProviderUnavailable(f"ONNX Runtime opened the model with {session.get_providers()[0]} instead")


OPENERS = {"cuda": _open_cuda, "openvino": _open_openvino, "cpu": _open_cpu}
