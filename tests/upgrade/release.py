"""The last release, taken out of this repository's history into build/upgrade/. Downloads nothing, starts nothing."""

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT
from tests.support.workers import Program

FIRST: Final = "0eb8494"  # the last commit with the packages `worker` and `config`; no tag was there yet
FOLDER: Final = ROOT / "build" / "upgrade"


class NotHere(Exception):
    """This tree has no such commit: it is a shallow clone, or no clone at all."""


def last() -> str:
    """The newest tag before this commit, or `FIRST`."""
    try:
        return _git("describe", "--tags", "--abbrev=0", "HEAD^").decode().strip()
    except NotHere:
        return FIRST


def program(commit: str) -> Program:
    """How to start the worker of that commit, with the packages of this environment. Raises NotHere."""
    folder = _unpacked(_git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").decode().strip())
    if (folder / "worker" / "coatstream").is_dir():
        return Program("coatstream", folder / "worker")
    return Program("worker", folder)


def _unpacked(commit: str) -> Path:
    """The tree of that commit. A folder of that name is complete: it gets its name last."""
    folder = FOLDER / commit
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=FOLDER))
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as archive:
            archive.extractall(unfinished, filter="data")
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _git(*words: str) -> bytes:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHere(f"git {' '.join(words)} fails in {ROOT}: {error}") from None
