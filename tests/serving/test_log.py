"""log.py: every event is one line."""

import json
import logging
import os
import sys

import pytest

from serving.log import LineHandler

NASTY = "a\nb\r\x1b[31mred\x85\u2028\x00 \u00e4"


@pytest.mark.parametrize("as_json", [False, True])
def test_escapes_unprintable_characters(as_json):
    record = logging.LogRecord("server", logging.ERROR, __file__, 1, NASTY, None, None)
    record.fields = {"reason": NASTY}
    line = LineHandler(as_json).format(record)
    assert line.isprintable()
    if as_json:
        assert json.loads(line)["event"] == NASTY
    else:
        assert r"a\nb\r\x1b[31mred" in line


def test_quotes_text_that_could_pass_for_another_field():
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "request", None, None)
    record.fields = {"path": "/x status=200", "status": 404}
    assert LineHandler(as_json=False).format(record).endswith(' request path="/x status=200" status=404')


def test_writes_what_fits_into_a_pipe_and_never_waits(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as lines:
        with os.fdopen(writer, "wb") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            for _ in range(100):
                record = logging.LogRecord("server", logging.INFO, __file__, 1, "x" * 9_001, None, None)
                LineHandler(as_json=False).emit(record)
        assert lines.readline().endswith(b" info " + b"x" * 9_001 + b"\n")
