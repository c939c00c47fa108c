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
    [test] = run_checks([("a", lambda subject: "b" * 10**6)], None, failures=())["tests"]
    assert test["message"] == "b" * 1000


def test_check_fails_only_with_the_given_exceptions():
    def check(subject):
        raise subject

    failed = {"tests": [{"name": "a", "passed": False, "message": "why"}], "passed": 0, "failed": 1}
    assert run_checks([("a", check)], AssertionError("why"), failures=()) == failed
    assert run_checks([("a", check)], ValueError("why"), failures=(ValueError,)) == failed
    with pytest.raises(ValueError, match="why"):
        run_checks([("a", check)], ValueError("why"), failures=())
