"""Images and containers by buildah, podman and runc (Debian's packages), without a registry and without a daemon.

A test that needs them runs where COATSTREAM_CONTAINERS=1 (`make deploy-check-image`): it takes minutes, root and 6 GB.
"""

import hashlib
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

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
[network]
network_backend = "netavark"
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
    for tool in ("buildah", "podman", "runc", "mmdebstrap"):
        if shutil.which(tool) is None:
            missing(f"no {tool} on this machine (apt-get install buildah podman runc mmdebstrap)")


def tool(*command: str | Path, check: bool = True, conf: Path = Path("/etc/containers/containers.conf")) -> str:
    """What buildah or podman prints on stdout and stderr; where `check`, it must succeed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env=os.environ | {"CONTAINERS_CONF": str(conf)},
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
    named = {"PYTHON_IMAGE": BASE, "WEIGHTS": "baked", "WEIGHTS_SHA256": digest, "PIP_ARGS": pip}
    named |= {"TORCH_INDEX": ""} if wheels else {}
    chosen = [part for name, value in named.items() for part in ("--build-arg", f"{name}={value}")]
    ignore = ("--ignorefile", str(recipe.with_name("Dockerfile.dockerignore")))
    return tool(*fixed, *ignore, *wheels, *chosen, *arguments, "-t", tag, context, check=check)


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
