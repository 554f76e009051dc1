"""Images and containers by buildah, podman and runc (Debian's packages), without a registry and without a daemon.

A test that needs them runs where COATSTREAM_CONTAINERS=1 (`make deploy-check-image`): it takes minutes, root and 6 GB.
"""

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from coatstream.engine.cores import usable_cores

from tests.support.absence import missing
from tests.support.paths import ROOT
from tests.support.ports import HOST, free_port

BASE = "localhost/coatstream-base:test"
GIVEN = os.environ.get("COATSTREAM_IMAGE")  # one that is there already: it is run and not built
IMAGE = GIVEN or "localhost/coatstream:test"
PATIENCE = 600.0
# Without these podman wants systemd's cgroups and limits that a container in a container may not raise.
CONF = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
HARDENED = (
    "--no-healthcheck",
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--network",
    "host",
)


def needed() -> None:
    """Skip where containers were not asked for; their tools must be there where they were."""
    if os.environ.get("COATSTREAM_CONTAINERS") != "1":
        pytest.skip("builds an image: make deploy-check-image")
    for tool in ("buildah", "podman", "runc", "catatonit", "mmdebstrap"):
        if shutil.which(tool) is None:
            missing(f"no {tool} on this machine (apt-get install buildah podman runc catatonit mmdebstrap)")


@cache
def _conf() -> str:
    folder = Path(tempfile.mkdtemp(prefix="coatstream-containers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (file := folder / "containers.conf").write_text(CONF, "ascii")
    return str(file)


def tool(*command: str | Path, check: bool = True) -> str:
    """What buildah or podman prints on stdout and stderr; where `check`, it must succeed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env=os.environ | {"CONTAINERS_CONF": _conf()},
        cwd=ROOT,
    )
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def build(context: Path, *arguments: str, tag: str = IMAGE, check: bool = True) -> str:
    """Build the image of what lies in `context`, a tree with baked weights; what buildah prints."""
    recipe = context / "deploy" / "docker" / "Dockerfile"
    digest = hashlib.sha256((context / "models" / "model.safetensors").read_bytes()).hexdigest()
    wheels = ("--volume", f"{context / 'wheels'}:/wheels:ro") if (context / "wheels").exists() else ()
    pip = "--cert /etc/ssl/certs/ca-certificates.crt" + (" --find-links /wheels" if wheels else "")
    fixed = ("buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers", "-f", recipe)
    named = {"PYTHON_IMAGE": BASE, "VARIANT": "cpu", "WEIGHTS": "baked", "WEIGHTS_SHA256": digest, "PIP_ARGS": pip}
    named |= {"TORCH_INDEX": ""} if wheels else {}
    chosen = [part for name, value in named.items() for part in ("--build-arg", f"{name}={value}")]
    ignore = ("--ignorefile", str(recipe.with_name("Dockerfile.dockerignore")))
    return tool(*fixed, *ignore, *wheels, *chosen, *arguments, "-t", tag, context, check=check)


def undisturbed(wall: float, processor: float) -> float:
    """Seconds that something takes where no other program wants the cores: measured, or at most its processor time."""
    return min(wall, processor / usable_cores())


def processor_seconds(pid: int) -> float:
    """Of a process and all its children, those that have ended too."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:  # it has ended
        return 0.0
    own: float = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(int(child)) for child in children)


def packages(image: str) -> list[str]:
    """What `pip freeze` would print, were there a pip."""
    script = (
        "from importlib.metadata import distributions; "
        "print(*sorted(f'{d.name}=={d.version}' for d in distributions()), sep='\\n')"
    )
    plain = ("podman", "run", "--rm", "--no-healthcheck", "--network", "host", "--entrypoint", "python")
    return tool(*plain, image, "-c", script).split()


@dataclass(frozen=True, slots=True)
class Container:
    """A worker in a container on the host's network."""

    name: str
    port: int

    def probe(self, path: str) -> int:
        """The status of a probe; 0 where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def probes(self) -> tuple[int, int, int]:
        """Of /startedz, /healthz, /readyz."""
        started, healthy, ready = map(self.probe, ("/startedz", "/healthz", "/readyz"))
        return started, healthy, ready

    def until(self, path: str, status: int = 200, *, within: float = PATIENCE) -> float:
        """Seconds until the probe has that status."""
        began = time.monotonic()
        while self.probe(path) != status:
            assert time.monotonic() - began < within, f"{path} is not {status}: {self.log()[-2000:]}"
            time.sleep(0.1)
        return time.monotonic() - began

    def stop(self, grace: int = 45) -> tuple[int, float]:
        """SIGTERM: the exit code, and the seconds that it took."""
        began = time.monotonic()
        tool("podman", "stop", "-t", str(grace), self.name)
        return int(self.inspect("{{.State.ExitCode}}")), time.monotonic() - began

    def processor_seconds(self) -> float:
        """That it has taken so far."""
        return processor_seconds(int(self.inspect("{{.State.Pid}}")))

    def inspect(self, template: str) -> str:
        return tool("podman", "inspect", "--format", template, self.name).strip()

    def log(self) -> str:
        return tool("podman", "logs", self.name, check=False)


@contextmanager
def container(url: str, settings: Mapping[str, str], *options: str, image: str = IMAGE) -> Iterator[Container]:
    """A hardened worker on the server at `url` with these settings (`model__engine`), removed at the end."""
    port, name = free_port(), f"coatstream-{uuid.uuid4().hex[:12]}"
    fixed = {"redis__url": url, "redis__start_timeout": "0", "http__host": HOST, "http__port": str(port)}
    variables = [f"COATSTREAM_{key.upper()}={value}" for key, value in {**fixed, **settings}.items()]
    environment = [part for variable in variables for part in ("-e", variable)]
    tmp = ("--tmpfs", "/tmp:rw,size=1g,mode=1777")
    tool("podman", "run", "-d", "--name", name, *HARDENED, *tmp, *options, *environment, image, "run")
    try:
        yield Container(name, port)
    finally:
        tool("podman", "rm", "-f", "-t", "0", name, check=False)
