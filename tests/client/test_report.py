"""The output of the testers."""

import pytest

from client.report import escape, run_checks


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("tench, Tinca tinca", "tench, Tinca tinca"),
        ("Äpfel 鱼 a\\b", "Äpfel 鱼 a\\b"),
        ("::error title=a::b", ":\\:error title=a::b"),
        (" ::error::b", " :\\:error::b"),
        ("a ##[error]b", "a ##\\[error]b"),
        ("a\n::error::b\r", "a\\n::error::b\\r"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\u202eb\u2028\udcff", "\\u202eb\\u2028\\udcff"),
        (None, "None"),
    ],
)
def test_escapes_non_printable_characters_and_commands(text, printed):
    assert escape(text) == printed


def test_message_of_a_check_is_cut():
    [test] = run_checks([("a", lambda subject: "b" * 10**6)], None)["tests"]
    assert test["message"] == "b" * 1000


@pytest.mark.parametrize("error", [AssertionError("why"), ValueError("why"), OSError(2, "why", "file")])
def test_error_fails_its_check_unless_it_is_fatal(error):
    def check(subject):
        raise subject

    failed = {"name": "a", "passed": False, "message": "why"}
    assert run_checks([("a", check)], error) == {"tests": [failed], "passed": 0, "failed": 1}
    with pytest.raises(type(error), match="why"):
        run_checks([("a", check)], error, fatal=type(error))
