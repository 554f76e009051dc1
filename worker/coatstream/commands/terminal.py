"""Text from strangers on somebody's terminal: names of files, sources, errors. Prints nothing itself."""


def shown(text: str) -> str:
    """`text` with whatever is not plain to see as an escape: control characters (which steer a terminal), line breaks,
    and the marks that reverse the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def shown_json(text: str) -> str:
    """The same JSON on one line, with such characters as JSON escapes.

    Valid JSON has them in strings only, save for white space between tokens.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _in_json(character) for character in text)


def _in_json(character: str) -> str:
    if character < " ":
        return " "
    utf16 = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{utf16[at : at + 2].hex()}" for at in range(0, len(utf16), 2))
