"""settings.integer: what an environment variable may hold, and what happens when it holds something else."""

import pytest

from settings import BadSetting, integer


def test_the_default_counts_where_the_variable_is_unset(monkeypatch):
    monkeypatch.delenv("PORT", raising=False)
    assert integer("PORT", 8000, 1, 65535) == 8000


def test_the_default_counts_where_the_variable_is_empty(monkeypatch):
    monkeypatch.setenv("PORT", "")
    assert integer("PORT", 8000, 1, 65535) == 8000


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("8080", 8080), ("65535", 65535), ("007", 7)])
def test_a_whole_number_from_minimum_to_maximum_is_taken(monkeypatch, text, number):
    monkeypatch.setenv("PORT", text)
    assert integer("PORT", 8000, 1, 65535) == number


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("eighty", id="a word"),
        pytest.param("80.5", id="a fraction"),
        pytest.param("1e3", id="an exponent"),
        pytest.param("0x50", id="hexadecimal"),
        pytest.param("1_000", id="an underscore, which int() takes"),
        pytest.param(" 80 ", id="blanks, which int() takes"),
        pytest.param(" ", id="only a blank"),
        pytest.param("+80", id="a plus"),
        pytest.param("-80", id="negative"),
        pytest.param("0", id="below the minimum"),
        pytest.param("65536", id="above the maximum"),
        pytest.param("٨٠", id="Arabic digits, which int() takes"),
        pytest.param("8²", id="a superscript, which isdigit() takes"),
    ],
)
def test_anything_else_ends_the_program_with_a_sentence(monkeypatch, text):
    monkeypatch.setenv("PORT", text)
    with pytest.raises(BadSetting) as stopped:
        integer("PORT", 8000, 1, 65535)
    # SystemExit prints a code that is a string, and exits with 1.
    assert stopped.value.code == f"PORT={text!r}: expected a whole number from 1 to 65535"
