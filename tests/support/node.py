"""The examples for Node with what they depend on, from npm."""

import shutil
import subprocess
from pathlib import Path

from tests.support.absence import missing
from tests.support.paths import ROOT

PATIENCE = 150.0  # seconds


def install_examples(folder: Path) -> Path:
    """Put examples/node and its node_modules into `folder`. Skips (fails on CI) without Node or a registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("no Node on this machine (https://nodejs.org)")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "admit.lua", folder / "docs")
    examples = folder / "examples" / "node"
    shutil.copytree(ROOT / "examples" / "node", examples, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=examples, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        missing(f"npm cannot install redis: {done.stderr[-300:]}")
    return examples
