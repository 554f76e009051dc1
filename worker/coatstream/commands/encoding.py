"""What stdout and stderr write for a character that their encoding lacks."""

import codecs
import sys
from io import TextIOWrapper


def survive_any_encoding() -> None:
    """From now on stdout and stderr write such a character as a JSON escape, `T\\u00fcr`: JSON says the same then."""
    codecs.register_error("json_escape", _escape_all)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="json_escape")


def json_escape(character: str) -> str:
    """The character as JSON has it in a string; a space for a control character."""
    if character < " ":
        return " "
    utf16 = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{utf16[at : at + 2].hex()}" for at in range(0, len(utf16), 2))


def _escape_all(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(json_escape, error.object[error.start : error.end])), error.end
