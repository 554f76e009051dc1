"""What a person types: `make help` knows every target."""

import re

from tests.support.paths import ROOT


def test_make_help_describes_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")

    [targets] = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    described = re.findall(r"make ([\w-]+)", makefile.partition("\nhelp:")[2].partition("\n\n")[0])

    assert set(targets.split()) - {"help"} == set(described)
