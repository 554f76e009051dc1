"""What strangers write cannot steer the terminal that shows it."""

import io
import json

import pytest
from coatstream.commands.terminal import a_console, shown, shown_json
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("door-1 Türe 猫", "door-1 Türe 猫"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("two\nlines", "two\\nlines"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("not utf-8: \udcff", "not utf-8: \\udcff"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, safe: str) -> None:
    assert shown(text) == safe


def test_a_cell_is_as_wide_as_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escapes that came only with the writing made rows of 60 columns 800 wide."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    assert shown("T\u00fcr") == "T\\u00fcr"


def test_where_the_terminal_is_dumb_its_true_width_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert a_console().width == 60


@given(st.text(), st.booleans())
def test_json_says_the_same_on_one_printable_line(text: str, indented: bool) -> None:
    document = json.dumps({"label": text}, ensure_ascii=False, indent=2 if indented else None)

    line = shown_json(document)

    assert line.isprintable()
    assert json.loads(line) == {"label": text}
