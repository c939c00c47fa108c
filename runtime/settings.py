"""Settings from environment variables. A test compares docs/configuration.md with them. Standard library only."""

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent  # of the repository
Group = TypeVar("Group")


class BadSetting(SystemExit):
    """An environment variable has an invalid value. Unless caught, it ends the program with exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"{Path(sys.argv[0]).name}: {message}"  # which Python prints


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs available to this process: its affinity or its container's quota, and at least 1."""
    # macOS has no affinity.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        if (cgroup / "cpu.max").exists():  # version 2: "<quota> <period>", in microseconds, or "max <period>"
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return cpus  # without a readable control group there is no quota
    return cpus if quota in ("max", "-1") else max(1, min(cpus, math.ceil(int(quota) / int(period))))


def setting(default: object, expected: str, help: str, parse: Callable[[str], Any]) -> Any:
    """Return a field of a group. `parse` returns None if its text is not what `expected` describes."""
    return field(default=default, metadata={"expected": expected, "help": help, "parse": parse})


def integer(default: int | None, minimum: int, maximum: int, help: str) -> Any:
    """Return a field for a whole number from `minimum` to `maximum`, inclusive."""

    def parse(text: str) -> int | None:
        # int() also accepts spaces, signs, underscores and the digits of other scripts.
        return int(text) if re.fullmatch("[0-9]{1,19}", text) and minimum <= int(text) <= maximum else None

    return setting(default, f"a whole number from {minimum} to {maximum}", help, parse)


def text(pattern: str, expected: str, help: str, default: str | None = None, strip: bool = False) -> Any:
    """Return a field for a printable text that matches `pattern`; `strip` drops leading and trailing white space."""

    def parse(text: str) -> str | None:
        text = text.strip() if strip else text
        return text if text.isprintable() and re.fullmatch(pattern, text) else None

    return setting(default, expected, help, parse)


def choice(allowed: tuple[str, ...], help: str) -> Any:
    """Return a field for one of the texts `allowed`, by default the first."""
    return text("|".join(allowed), f"one of {', '.join(allowed)}", help, allowed[0])


@dataclass(frozen=True)
class ModelSettings:
    """Settings of app.py."""

    MODEL_PATH: str = setting(str(ROOT / "classifier.onnx"), "a path", "ONNX file written by convert_to_onnx.py", str)
    EXECUTION_PROVIDER: str = choice(("auto", "cuda", "openvino", "cpu"), "backend; auto: the fastest that works")
    PRECISION: str = choice(("auto", "f32"), "auto: bfloat16 or TF32 if the hardware has it; f32: exact, also decoding")
    THREADS: int | None = integer(None, 1, 1024, "threads of the model; unset: the CPUs available to the container")
    MAX_IMAGES: int = integer(16, 1, 1024, "images per request")
    MAX_IMAGE_MB: int = integer(400, 1, 100_000, "memory for decoding one image, in units of 1,000,000 bytes")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of server.py."""

    HOST: str = text(r"\S+", "an address", "address to listen on", "0.0.0.0")
    PORT: int = integer(8000, 1, 65_535, "port to listen on")
    BANANA_API_KEY: str | None = text(
        r"\S|\S.*\S", "UTF-8 text without leading or trailing spaces", "API key that requests must send; unset: none"
    )
    CORS_ORIGIN: str | None = text(
        r"\*|https?://[^/\s,]+", "* or one origin such as https://example.com", "web pages that may call; unset: none"
    )
    LOG_FORMAT: str = choice(("text", "json"), "format of log lines")
    MAX_QUEUE: int = integer(64, 0, 100_000, "requests that may wait, in addition to those being processed")
    MAX_BODY_MB: int = integer(20, 1, 1024, "size of a request body, in units of 1,000,000 bytes")
    REQUEST_TIMEOUT_S: int = integer(30, 1, 3600, "seconds for a request's headers to arrive, and again for its body")
    RESPONSE_TIMEOUT_S: int = integer(60, 1, 3600, "seconds from a request's first byte to its response")
    KEEP_ALIVE_TIMEOUT_S: int = integer(75, 1, 3600, "seconds that an idle connection is kept open")
    SHUTDOWN_GRACE_S: int = integer(10, 0, 3600, "seconds that running requests may take after SIGTERM")


@dataclass(frozen=True)
class EndpointSettings:
    """Settings of test_server.py; its options --url and --api-key take precedence."""

    BANANA_MODEL_URL: str | None = text(
        r"(?i:https?)://\S+", "an http:// or https:// URL", "endpoint; unset: a server on this machine", strip=True
    )
    BANANA_API_KEY: str | None = text(
        r"[!-~]([ -~]*[!-~])?", "ASCII text, as headers require", "key of the endpoint; unset: none", strip=True
    )


@dataclass(frozen=True)
class RaySettings:
    """Settings of deploy/ray_serve.py, in addition to the server's and the model's."""

    MIN_REPLICAS: int = integer(1, 1, 1000, "minimum number of replicas")
    MAX_REPLICAS: int = integer(4, 1, 1000, "maximum number of replicas; at least MIN_REPLICAS")
    CPUS_PER_REPLICA: int = integer(1, 1, 1024, "CPUs per replica, and its THREADS")
    REPLICAS_PER_GPU: int = integer(0, 0, 100, "replicas that share a GPU; 0: no replica uses one")


def read(group: type[Group], environment: Mapping[str, str] = os.environ) -> Group:
    """Return the settings of a group; an unset or empty variable has its default. Raises BadSetting."""
    values = {}
    for known in fields(group):  # type: ignore[arg-type]
        if value := environment.get(known.name):
            values[known.name] = known.metadata["parse"](value)
            if values[known.name] is None:
                shown = "" if "KEY" in known.name else f"={value!r}"  # a secret is never printed
                raise BadSetting(f"{known.name}{shown}: expected {known.metadata['expected']}")
    return group(**values)
