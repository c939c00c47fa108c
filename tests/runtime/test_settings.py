"""settings.py: valid and invalid environment variables, and the number of CPUs."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.settings import BadSetting, available_cpus, choice, integer, read, text
from tests.server_process import ROOT


@dataclass(frozen=True)
class Group:
    PORT: int = integer(8000, 1, 65535, "port")
    FORMAT: str = choice(("text", "json"), "format")
    WEB_KEY: str | None = text(r"\S|\S.*\S", "text without leading or trailing spaces", "key")


@pytest.mark.parametrize("environment", [{}, {"PORT": "", "FORMAT": "", "WEB_KEY": ""}])
def test_unset_or_empty_variable_has_its_default(environment):
    assert read(Group, environment) == Group(8000, "text", None)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("8080", 8080), ("65535", 65535), ("007", 7)])
def test_accepts_whole_numbers_in_range(text, number):
    assert number == read(Group, {"PORT": text}).PORT


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("eighty", id="a word"),
        pytest.param("80.5", id="a fraction"),
        pytest.param("1e3", id="an exponent"),
        pytest.param("0x50", id="hexadecimal"),
        pytest.param("1_000", id="an underscore, which int() accepts"),
        pytest.param(" 80 ", id="spaces, which int() accepts"),
        pytest.param(" ", id="only a space"),
        pytest.param("+80", id="a plus"),
        pytest.param("-80", id="negative"),
        pytest.param("0", id="below the minimum"),
        pytest.param("65536", id="above the maximum"),
        pytest.param("٨٠", id="Arabic digits, which int() accepts"),
        pytest.param("8²", id="a superscript, which isdigit() accepts"),
    ],
)
def test_rejects_anything_else(text):
    with pytest.raises(BadSetting) as stopped:
        read(Group, {"PORT": text})
    assert str(stopped.value) == f"PORT={text!r}: expected a whole number from 1 to 65535"


def test_choice_is_one_of_those_allowed():
    assert read(Group, {"FORMAT": "json"}).FORMAT == "json"
    with pytest.raises(BadSetting, match="FORMAT='xml': expected one of text, json"):
        read(Group, {"FORMAT": "xml"})


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param("secret\n", id="line feed of a pasted secret"),
        pytest.param(" secret", id="leading space"),
        pytest.param("sec\x00ret", id="a control character"),
        pytest.param("s\udce9cret", id="a byte that is not UTF-8"),
    ],
)
def test_key_that_cannot_be_sent_is_rejected_and_not_shown(secret):
    with pytest.raises(BadSetting) as stopped:
        read(Group, {"WEB_KEY": secret})
    assert str(stopped.value) == "WEB_KEY: expected text without leading or trailing spaces"


@pytest.mark.parametrize("script", ["server.py", "benchmarks/bench.py"])
def test_invalid_setting_names_the_program_and_exits_1(script):
    code = (
        "import sys; sys.argv[0] = sys.argv[1]\nfrom runtime.settings import ServerSettings, read; read(ServerSettings)"
    )
    command = [sys.executable, "-c", code, f"/some where/{script}"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | {"PORT": "abc"}, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"{Path(script).name}: PORT='abc': expected a whole number from 1 to 65535\n"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({}, 8),
    ],
)
def test_cpus_are_those_available_to_the_container(monkeypatch, tmp_path, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    assert available_cpus(tmp_path) == cpus


def test_all_cpus_count_if_there_is_no_affinity(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cpus(tmp_path) == 12
