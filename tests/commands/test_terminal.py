"""What strangers write cannot steer the terminal that shows it."""

import json

import pytest
from coatstream.commands.terminal import shown, shown_json
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


@given(st.text(), st.booleans())
def test_json_says_the_same_on_one_printable_line(text: str, indented: bool) -> None:
    document = json.dumps({"label": text}, ensure_ascii=False, indent=2 if indented else None)

    line = shown_json(document)

    assert line.isprintable()
    assert json.loads(line) == {"label": text}
