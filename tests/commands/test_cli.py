"""The command line itself: help, examples, completion, and how fast it is there."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer
from coatstream import cli


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command that does something, by its words."""
    below = getattr(command, "commands", None)
    if below is None:
        return {path: command}
    return {name: leaf for word, one in below.items() for name, leaf in leaves(one, (*path, word)).items()}


LEAVES = leaves(typer.main.get_command(cli.app))
GROUPS = [(), ("dead",), ("cameras",), ("tags",), ("bench",)]


def examples(path: tuple[str, ...]) -> list[list[str]]:
    lines = (LEAVES[path].epilog or "").splitlines()
    return [line.split() for line in lines if line.strip().startswith("coatstream ")]


@pytest.mark.parametrize("path", [*GROUPS, *LEAVES], ids=" ".join)
def test_help_fits_80_columns_and_names_no_python_types(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert cli.run([*path, "--help"]) == 0

    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {' '.join(('coatstream', *path))} [OPTIONS]")
    assert not re.search(r"<class|<str>|<\w+ range>|\b(TEXT|FLOAT|INTEGER)\b|x>=", text)
    prose = text.partition("Examples:")[0]
    assert max(map(len, prose.splitlines())) <= 80
    assert "..." not in prose.partition("Commands:")[2], "a command's line is cut short"


@pytest.mark.parametrize("path", list(LEAVES), ids=" ".join)
def test_examples_are_of_the_command_and_use_its_own_options(path: tuple[str, ...]) -> None:
    known = {name for param in LEAVES[path].params for name in param.opts}

    for words in examples(path):
        assert tuple(words[1 : 1 + len(path)]) == path
        assert {word for word in words if word.startswith("--")} <= known
    assert examples(path)


@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
def test_a_group_called_bare_prints_its_help_and_nothing_else(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run(list(path))

    out, err = capsys.readouterr()
    assert (code, err) == (2, "")
    assert "Commands:" in out


@pytest.mark.parametrize("arguments", [["no-such"], ["dead", "no-such"], ["run", "--no-such"], ["classify"]])
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(arguments)

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("value", "told"), [("soon", "is not a number"), ("-1", "is not 0 or more"), ("nan", "0 or")])
def test_a_number_that_is_none_is_refused(value: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--seconds", value]) == 2

    assert told in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from coatstream import cli; code = cli.run(['--help']); "
        "heavy = {'torch', 'timm', 'cv2', 'redis', 'numpy', 'pydantic', 'rich'} & set(sys.modules); "
        "print(code, sorted(heavy), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert done.stderr == "0 []\n"


def test_the_shell_completes_commands() -> None:
    words = {"_COATSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": "coatstream cl", "COMP_CWORD": "1"}

    done = subprocess.run(
        [sys.executable, "-m", "coatstream"],
        env=os.environ | words,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stdout.split() == ["classify"], done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_what_the_terminals_encoding_lacks_is_written_as_a_json_escape(encoding: str) -> None:
    script = r"""
from coatstream import cli
from coatstream.commands import check, terminal

def say(load, *, as_json):
    terminal.print_rows(terminal.table("a"), [["T\xfcr \u732b"]], empty="")
    terminal.complain("T\xfcr \U0001f431 \udce9")
    print('{"a":"\u732b"}')

check.run_check = say
cli.main()
"""

    done = subprocess.run(
        [sys.executable, "-c", script, "check"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )

    umlaut = b"\xfc" if encoding == "latin-1" else b"\\u00fc"
    assert done.returncode == 0
    assert [line.strip() for line in done.stdout.splitlines()[1:]] == [b"T" + umlaut + b"r \\u732b", b'{"a":"\\u732b"}']
    assert done.stderr == b"coatstream: T" + umlaut + b"r \\ud83d\\udc31 \\udce9\n"


@pytest.mark.parametrize("words", [["--help"], ["tags", "groups"], ["tags", "groups", "--json"]], ids=" ".join)
def test_a_full_disk_under_the_output_is_no_bug(words: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "coatstream", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert (done.returncode, done.stderr) == (1, "coatstream: output cannot be written: No space left on device\n")
