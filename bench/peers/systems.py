"""The systems that are compared: how each is started, asked and stopped, and the settings that are tried for it.

Each measurement starts its system anew and ends every process of it.
"""

import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coatstream.broker.embedded import embedded_server

from bench.peers.meter import MARK, Meter

ROOT = Path(__file__).parents[2]  # of the tree: `bench` is in no package that is installed
LEAVE = 2.0  # seconds that a peer has to end by itself: it holds nothing that anybody waits for
START_TIMEOUT = 180.0  # seconds until the first label; a first start may convert a model
CALL_TIMEOUT = 300.0

Setting = Mapping[str, int]


class NotMeasurable(Exception):
    """This system cannot be measured here: why, in one line."""


@dataclass(frozen=True)
class Job:
    """What all systems do: the same pictures, the same weights.

    folder     holds pictures/*.jpg, reference.json (each picture's probabilities), weights.safetensors; work goes here
    arguments  more of `coatstream run`
    variables  more for the peers' environment
    """

    folder: Path
    model: str
    cores: int
    clients: int
    peers_python: Path | None = None
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def shared(self) -> dict[str, Any]:
        return {
            "pictures": str(self.folder / "pictures"),
            "reference": str(self.folder / "reference.json"),
            "clients": self.clients,
        }

    def first_picture(self) -> bytes:
        return min((self.folder / "pictures").glob("*.jpg")).read_bytes()


@dataclass(frozen=True)
class Span:
    """How long to measure: seconds of warming up, of the closed loop, and of the evenly paced half load (0 = none)."""

    warm: float
    closed: float
    paced: float

    @property
    def options(self) -> dict[str, float]:
        return {"warm": self.warm, "seconds": self.closed, "paced": self.paced}


Sample = dict[str, Any]  # what load.result() says, and start_s


# ---- coatstream


def measure_coatstream(job: Job, _setting: Setting, span: Span) -> Sample:
    """`coatstream run` as it comes: labels of a queue on a server of its own, through a Unix socket."""
    began = time.perf_counter()
    with embedded_server() as own:
        mark = _mark()
        command = [sys.executable, "-m", "coatstream", "run", "--redis", own.url, "--model", job.model]
        command += ["--weights", str(job.weights), "--device", "cpu"]
        command += ["--set", "http.port=0", "--set", "log.level=error", "--set", f"model.cache={job.folder / 'cache'}"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
        with running([*command, *job.arguments], mark, plain, job.folder) as process:
            _first_label(own.url, job.first_picture(), process)
            started = time.perf_counter() - began
            meters = {"system": [mark], "server": ["no mark", own.process.pid]}
            options = {**job.shared, **span.options, "kind": "queue", "url": own.url, "meters": meters}
            sample = _call([sys.executable, "-m", "bench.peers.load", json.dumps(options)])
    return {**sample, "start_s": started}


def _first_label(url: str, picture: bytes, process: "PeerProcess") -> None:
    """One frame through a worker that may still be loading."""
    from redis import Redis

    with Redis.from_url(url) as client:
        client.xadd("frames", {"image": picture, "frame_id": "first", "source": "door-0"})
        deadline = time.perf_counter() + START_TIMEOUT
        while not client.xread({"labels": "0-0"}, block=100):
            process.check(deadline)


# ---- the naive loop


def measure_naive(job: Job, setting: Setting, span: Span) -> Sample:
    """In its own process; it measures itself."""
    options = {**job.shared, **span.options, **setting, "model": job.model, "weights": str(job.weights)}
    began = time.time()
    sample = _call(
        [str(job.peers_python or sys.executable), "-m", "bench.peers.naive_loop", json.dumps(options)],
        {**_clean(), **job.variables, MARK: _mark()},
    )
    return {**sample, "start_s": sample.pop("ready") - began}


# ---- the servers


@dataclass(frozen=True)
class HttpPeer:
    """A peer that is asked by HTTP: a script of this folder."""

    module: str
    path: str
    kind: str = "raw"  # how the picture is sent: raw or form

    def __call__(self, job: Job, setting: Setting, span: Span) -> Sample:
        mark, port = _mark(), _free_port()
        folder = Path(tempfile.mkdtemp(prefix="peer-"))  # short: Ray's sockets lie in it
        given = {f"PEER_{name.upper()}": str(value) for name, value in setting.items()}
        given |= {"PEER_PORT": str(port), "PEER_MODEL": job.model, "PEER_WEIGHTS": str(job.weights)}
        given |= {"PEER_FOLDER": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        url = f"http://127.0.0.1:{port}{self.path}"
        try:
            began = time.perf_counter()
            command = [str(job.peers_python), "-m", f"bench.peers.{self.module}"]
            with running(command, mark, {**_clean(), **job.variables, **given}, folder) as process:
                self._first_answer(port, job.first_picture(), process)
                started = time.perf_counter() - began
                options = {**job.shared, **span.options, "kind": self.kind, "url": url, "meters": {"system": [mark]}}
                sample = _call([str(job.peers_python), "-m", "bench.peers.load", json.dumps(options)])
            return {**sample, "start_s": started}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _first_answer(self, port: int, picture: bytes, process: "PeerProcess") -> None:
        headers, body = {"Content-Type": "image/jpeg"}, picture
        if self.kind == "form":
            head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
            headers, body = {"Content-Type": "multipart/form-data; boundary=x"}, head + picture + b"\r\n--x--\r\n"
        deadline = time.perf_counter() + START_TIMEOUT
        while True:
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT)
            try:
                link.request("POST", self.path, body, headers)
                if link.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                link.close()
            process.check(deadline)
            time.sleep(0.05)


MOSEC = HttpPeer("serve_mosec", "/inference")
RAY = HttpPeer("serve_ray", "/")
LITSERVE = HttpPeer("serve_litserve", "/predict", kind="form")

MEASURES: Mapping[str, Callable[[Job, Setting, Span], Sample]] = {
    "coatstream": measure_coatstream,
    "naive": measure_naive,
    "mosec": MOSEC,
    "ray": RAY,
    "litserve": LITSERVE,
}


def grid(system: str, cores: int) -> list[Setting]:
    """What is tried for a system; the best of it by frames a second is its setting. The naive loop's first is batch 1.

    On the cores: a worker on each with one thread, or one worker with all threads. `decoders` are mosec's stage in
    front of the model.
    """
    each, all_in_one = {"workers": cores, "threads": 1}, {"workers": 1, "threads": cores}
    match system:
        case "naive":
            return [{"batch": batch, "threads": cores} for batch in (1, 2, 4, 8)]
        case "mosec":
            return [
                {**each, "batch": 1, "wait_ms": 0, "decoders": 0},
                {**each, "batch": 4, "wait_ms": 10, "decoders": 0},
                {**each, "batch": 4, "wait_ms": 10, "decoders": 1},
                {**all_in_one, "batch": 8, "wait_ms": 10, "decoders": cores},
            ]
        case "ray" | "litserve":
            return [
                {**each, "batch": 1, "wait_ms": 0},
                {**each, "batch": 2, "wait_ms": 5},
                {**each, "batch": 4, "wait_ms": 10},
                {**all_in_one, "batch": 8, "wait_ms": 10},
            ]
    return [{}]


# ---- processes


@dataclass
class PeerProcess:
    """What was started, and where it complains."""

    popen: "subprocess.Popen[bytes]"
    log: Path

    def check(self, deadline: float) -> None:
        """Raises NotMeasurable if it has ended, or the time is over."""
        if self.popen.poll() is None and time.perf_counter() < deadline:
            return
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        what = f"ended ({self.popen.returncode})" if self.popen.poll() is not None else "did not answer in time"
        raise NotMeasurable(f"{what}: {lines[-1].strip() if lines else 'it said nothing'}")


@contextmanager
def running(command: list[str], mark: str, variables: Mapping[str, str], folder: Path) -> Iterator[PeerProcess]:
    """A system; asked to end on leaving, and after that made to, with whatever it has started."""
    log = folder / f"{mark}.log"
    meter = Meter(mark)
    with log.open("wb") as out:
        popen = subprocess.Popen(
            command,
            env={**variables, MARK: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C on the terminal is for us
            preexec_fn=_end_with_parent,  # noqa: PLW1509  (or a system would outlive a killed benchmark)
        )
    try:
        yield PeerProcess(popen, log)
    finally:
        meter.processes()  # while parents live: their children are found through them
        popen.terminate()
        deadline = time.monotonic() + LEAVE
        while (left := meter.processes()) and time.monotonic() < deadline:
            popen.poll()
            time.sleep(0.05)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        popen.wait()


def _end_with_parent() -> None:
    """Runs in the child before it becomes the system: SIGTERM when we are gone, however that ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, linux/prctl.h


def _call(command: list[str], variables: Mapping[str, str] | None = None) -> Sample:
    """The JSON that it prints. Raises NotMeasurable with the last line of what it complained about."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=CALL_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise NotMeasurable(f"not done in {CALL_TIMEOUT:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotMeasurable(lines[-1].strip() if lines else f"exit code {done.returncode}")
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    return sample


def _mark() -> str:
    return os.urandom(8).hex()


def _clean() -> dict[str, str]:
    """Our environment without what would leak into the peers', which find this package in the tree."""
    own = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", MARK)}
    return own | {"PYTHONPATH": str(ROOT)}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port
