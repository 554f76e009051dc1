"""The environment of the peers: their own packages over the torch, timm and OpenCV of ours.

A virtual environment of its own, so that nothing of coatstream's changes; it sees our packages behind its own ones by a
.pth file. All systems so run the same torch, and 5 GB need not be fetched a second time.
"""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SERVERS = {"mosec": "mosec", "ray": "ray.serve", "litserve": "litserve"}  # system -> what must be importable

_LENT = ("torch", "torchvision", "timm", "cv2", "numpy", "PIL", "safetensors")
_SAME = ("torch", "torchvision", "timm", "opencv-python-headless", "numpy", "pillow", "safetensors")
_PTH = "coatstream-packages.pth"
_INSTALL_TIMEOUT = 1200.0


class Environment:
    """A folder with a virtual environment; made once, used again while requirements and interpreter are the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self._stamp = folder / "made-of"

    @property
    def made(self) -> bool:
        """Whether it is there already, of the same requirements."""
        return self._stamp.is_file() and self._stamp.read_text() == _recipe()

    def make(self) -> str:
        """Install what can be installed; says in one line what could not be, "" if all is there."""
        if self.made:
            return ""
        _call([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        constraints = self.folder / "constraints.txt"
        constraints.write_text(_constraints())
        failed = self._install(constraints)
        # Only now: pip must not take our packages for its own, and never touch them.
        packages = Path(
            _call([str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        )
        (packages / _PTH).write_text("".join(f"{path}\n" for path in _lenders()))
        if not failed:
            self._stamp.write_text(_recipe())
        return failed

    def _install(self, constraints: Path) -> str:
        """All at once; where that fails, one by one, so that one package does not take the others with it."""
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--constraint", str(constraints)]
        try:
            _call([*pip, "--requirement", str(REQUIREMENTS)])
        except OSError:
            failures = []
            for line in requirements():
                try:
                    _call([*pip, line])
                except OSError as error:
                    failures.append(f"{line} cannot be installed ({error})")
            return "; ".join(failures)
        return ""

    def has(self, module: str) -> bool:
        """Whether it can be imported there."""
        return not subprocess.run(
            [self.python, "-c", f"import {module}"], capture_output=True, check=False, timeout=120
        ).returncode

    def versions(self) -> dict[str, str]:
        """Of the servers, as installed."""
        code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
        found = dict(pair.split("==") for pair in _call([str(self.python), "-c", code]).split())
        return {name: found[name] for name in ("mosec", "ray", "litserve") if name in found}


def _recipe() -> str:
    return f"{sys.version}\n{_constraints()}{REQUIREMENTS.read_text()}"


def requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line]


def _constraints() -> str:
    """What both environments share must be what we have: numpy may come with a peer, and must fit our torch."""
    found = []
    for name in _SAME:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}\n")
        except PackageNotFoundError:
            continue
    return "".join(found)


def _lenders() -> list[str]:
    """The folders that hold our torch and its like: one as a rule, two where a system splits them."""
    specs = [importlib.util.find_spec(name) for name in _LENT]
    return list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin))


def _call(command: list[str]) -> str:
    """What it printed. Raises OSError with the last line of what it complained about."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT, env=environment
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"not done in {_INSTALL_TIMEOUT:.0f} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or [f"exit code {done.returncode}"]
        raise OSError(errors[-1].strip())
    return done.stdout
