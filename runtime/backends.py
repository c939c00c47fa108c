"""Execution providers: run an ONNX file on the fastest that really works here, and say which that is.

What is fastest for one caller, all threads on one picture, is not what is fastest for many, a thread for each picture:
on a CPU the model is opened twice, and every run takes the one that suits. On a GPU the runs that wait become a batch.
"""

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime import memory
from runtime.errors import BackendUnavailable, InvalidModel
from runtime.metadata import Metadata, parse

logger = logging.getLogger("server")

CPUINFO = Path("/proc/cpuinfo")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)  # a GPU plans anew for every size that it has not seen, so it sees these alone
Run = Callable[[np.ndarray], np.ndarray]  # uint8 [batch, height, width, 3] to probabilities, float32 [batch, classes]


@dataclass
class Runner:
    """A model, opened for one caller, and by `open_for_many`, where there is that, a second time for many.

    `any_size` says whether the graph's own resize is right on this provider: OpenVINO's ignores `antialias`.
    """

    provider: str
    precision: str
    metadata: Metadata
    run_alone: Run
    any_size: bool = False
    open_for_many: Callable[[], Run] | None = None
    _run_among_many: Run | None = None
    _running: int = 0
    _count: threading.Lock = field(default_factory=threading.Lock)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of uint8 [batch, height, width, 3].

        A run beside which no other is going on has all threads. Batching brings nothing on a CPU, and a fixed batch of
        one is faster than any.
        """
        with self._count:
            self._running += 1
            alone = self._running == 1
            if not alone and self.open_for_many:
                # Once, when there first are many, and in the background: whoever has one caller never pays for it.
                threading.Thread(target=self._open_for_many, args=(self.open_for_many,)).start()
                self.open_for_many = None
        run = self.run_alone if alone else self._run_among_many or self.run_alone
        try:
            rows = [run(image[None]) for image in pixels]
        finally:
            with self._count:
                self._running -= 1
        return np.concatenate(rows)

    def _open_for_many(self, open_for_many: Callable[[], Run]) -> None:
        try:
            self._run_among_many = open_for_many()
        except Exception as error:  # the provider's own
            fields = {"provider": self.provider, "reason": str(error)}
            logger.warning("not opened for many callers, who go on as one does", extra={"fields": fields})
        memory.trim_heap()


@dataclass
class BatchRunner(Runner):
    """A model on a GPU: the images that wait while it works become one batch, padded to one of BATCH_SIZES.

    Whichever waiting run gets the GPU first takes the others' images with it. Unmeasured: there was no GPU.
    """

    _waiting: list[tuple[np.ndarray, Future]] = field(default_factory=list)
    _gpu: threading.Lock = field(default_factory=threading.Lock)  # whoever has it may take from the list

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of uint8 [batch, height, width, 3] of the model's size."""
        rows: list[Future] = [Future() for _ in pixels]
        self._waiting.extend(zip(pixels, rows, strict=True))
        with self._gpu:
            while not rows[-1].done():
                self._run_waiting()
        return np.stack([row.result() for row in rows])

    def _run_waiting(self) -> None:
        count = min(len(self._waiting), BATCH_SIZES[-1])
        taken = [self._waiting.pop(0) for _ in range(count)]
        size = next(size for size in BATCH_SIZES if size >= count)
        pixels = np.stack([image for image, _ in taken])
        try:
            rows = self.run_alone(np.pad(pixels, [(0, size - count), (0, 0), (0, 0), (0, 0)]))
        except Exception as error:  # the provider's own
            for _, waiting in taken:
                waiting.set_exception(error)
        else:
            for (_, waiting), row in zip(taken, rows[:count], strict=True):
                waiting.set_result(row)


def open_runner(path: Path, provider: str, precision: str, threads: int) -> Runner:
    """Open the model on a provider.

    With `auto` it is the first of BACKENDS that answers with probabilities: one can load a model and then fail on it.
    With `precision` auto OpenVINO computes in bfloat16 on a CPU that has it, and CUDA in TF32; with f32 neither.
    Raises BackendUnavailable for a provider that was named, and InvalidModel.
    """
    memory.configure_malloc()
    *faster, last = BACKENDS if provider == "auto" else [provider]
    for name in faster:
        try:
            return _open(name, path, precision, threads)
        except Exception as error:  # the provider's own, for which no two have one base class
            logger.info("execution provider not used", extra={"fields": {"provider": name, "reason": str(error)}})
    try:
        return _open(last, path, precision, threads)
    except (BackendUnavailable, ImportError) as error:
        raise BackendUnavailable(f"execution provider {last}: {error}") from error
    except Exception as error:  # the provider's own
        raise InvalidModel(f"{path} is not a file that convert_to_onnx.py wrote, or {last} fails: {error}") from error


def _open(provider: str, path: Path, precision: str, threads: int) -> Runner:
    runner = BACKENDS[provider](path, precision, threads)
    size, classes = runner.metadata.preprocessing.size, len(runner.metadata.class_names)
    rows = runner.run(np.full((1, *size, 3), 127, np.uint8))
    if rows.shape != (1, classes) or not ((rows >= 0) & (rows <= 1.001)).all():
        raise ValueError(f"{runner.provider} does not give the probabilities of {classes} classes")
    memory.trim_heap()
    return runner


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, where it is needed: it takes long, and reports to its maker if it may."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # it says the same in its errors, and here in lines of its own
    return onnxruntime


def _open_session(path: Path, threads: int, providers: list) -> tuple[Any, Run]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # A thread that spins while it waits takes a core from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    return session, lambda pixels: session.run(["probabilities"], {"image": pixels})[0]


def _open_cpu(path: Path, precision: str, threads: int) -> Runner:
    name = "CPUExecutionProvider"
    changed = path.stat().st_ctime_ns
    session, run_alone = _open_session(path, threads, [name])

    def open_for_many() -> Run:
        run = _open_session(path, 1, [name])[1]
        if path.stat().st_ctime_ns != changed:  # and what is in it now would be mixed with what is served
            raise InvalidModel(f"{path} has changed since it was opened: start the server anew")
        return run

    described = parse(session.get_modelmeta().custom_metadata_map)
    return Runner(name, "f32", described, run_alone, True, open_for_many if threads > 1 else None)


def _open_openvino(path: Path, precision: str, threads: int) -> Runner:
    # Half the time of the import, and it reports to its maker.
    sys.modules.setdefault("openvino.tools", None)  # type: ignore[arg-type]
    import openvino.frontend

    # Not Core.read_model, which tries other formats on what is not ONNX: TensorFlow writes to stderr then.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    model = frontend.convert(frontend.load(path))
    texts = model.get_rt_info()["framework"] if model.has_rt_info("framework") else {}
    described = parse({name: text.value for name, text in texts.items()})
    model.reshape([1, *described.preprocessing.size, 3])

    def compile_model(streams: int) -> openvino.CompiledModel:
        config = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "auto" and _has_bfloat16() else "f32",
            "ENABLE_CPU_PINNING": False,  # both would pin their threads to the same cores
        }
        return openvino.Core().compile_model(model, "CPU", config)

    def run_in(compiled: openvino.CompiledModel) -> Run:
        own = threading.local()  # a request serves one thread, and to make one waits for a run that is going on

        def run(pixels: np.ndarray) -> np.ndarray:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
                own.image = own.request.get_input_tensor().data
                own.probabilities = own.request.get_output_tensor().data
            np.concatenate([pixels], out=own.image)  # an assignment would spread pixels of another shape
            own.request.infer()
            return own.probabilities.copy()

        return run

    compiled = compile_model(1)
    computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    open_for_many = (lambda: run_in(compile_model(threads))) if threads > 1 else None
    return Runner("OpenVINOExecutionProvider", computes_in, described, run_in(compiled), open_for_many=open_for_many)


def _has_bfloat16() -> bool:
    # Where it is not named OpenVINO uses it on AMX alone, and where it is, also on a CPU that emulates it slowly.
    return CPUINFO.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(CPUINFO.read_text().split())


def _open_cuda(path: Path, precision: str, threads: int) -> Runner:
    # ONNX Runtime would find out as well, but takes long to import and says so in ten lines of its own.
    try:
        status = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError as error:
        raise BackendUnavailable(f"there is no GPU with its driver here: {error}") from error
    if status:
        raise BackendUnavailable(f"the driver finds no GPU that it can use: cuInit returns {status}")
    onnxruntime = import_onnxruntime()
    name = "CUDAExecutionProvider"
    if name not in onnxruntime.get_available_providers():
        raise BackendUnavailable("this build of ONNX Runtime has none: install onnxruntime-gpu")
    onnxruntime.preload_dlls()
    # HEURISTIC does without half a second of search for every new shape.
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0" if precision == "f32" else "1"}
    session, run = _open_session(path, threads, [(name, options), "CPUExecutionProvider"])
    # What a session was opened with is not always what it got.
    if session.get_providers()[0] != name:
        raise BackendUnavailable(f"ONNX Runtime opened the model with {session.get_providers()[0]} instead")
    described = parse(session.get_modelmeta().custom_metadata_map)
    return BatchRunner(name, "f32" if precision == "f32" else "tf32", described, run)


# The fastest first; what the last raises ends the start.
BACKENDS = {"cuda": _open_cuda, "openvino": _open_openvino, "cpu": _open_cpu}
