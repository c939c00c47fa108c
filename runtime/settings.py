"""Settings from environment variables: a bad value ends the program with a sentence, not with a traceback.

Each file has its settings in one block at its top, with their units and defaults.
"""

import math
import os
from pathlib import Path


class BadSetting(SystemExit):
    """An environment variable holds a value that means nothing; ends the program with exit code 1 unless caught."""


def integer(name: str, default: int, minimum: int, maximum: int) -> int:
    """Return the environment variable `name` as an integer, or `default` where it is unset or empty.

    Raises BadSetting for anything but a whole number from `minimum` to `maximum`, both included.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 20) or not minimum <= int(text) <= maximum:
        raise BadSetting(f"{name}={text!r}: expected a whole number from {minimum} to {maximum}")
    return int(text)


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    """Return the environment variable `name`, or `default` where it is unset or empty.

    Raises BadSetting for anything that is not among `allowed`.
    """
    text = os.environ.get(name) or default
    if text not in allowed:
        raise BadSetting(f"{name}={text!r}: expected one of {', '.join(allowed)}")
    return text


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this process may use, at least 1: its affinity, or its container's quota if that is less."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # as on macOS
    try:
        if (cgroup / "cpu.max").exists():  # version 2: "<quota> <period>", in microseconds, or "max <period>"
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
    except OSError:
        return cpus  # no control group that can be read, and so no quota to keep to
    return cpus if quota in ("max", "-1") else max(1, min(cpus, math.ceil(int(quota) / int(period))))
