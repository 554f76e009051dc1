"""A stand-in for the CPU build of torchvision, which only PyTorch's own index has.

It is the wheel of the default index without its operations, which are compiled for CUDA. coatstream and timm use its
transforms alone, so the test of the image needs no more on a machine that does not reach PyTorch's index.
"""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

DECLARED = """
_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def put_in_place(lock: Path, wheels: Path) -> None:
    """Make the wheel that the lock names in `wheels`, and write its hash into the lock."""
    version = re.findall(r"^torchvision==([\d.]+)\+cpu", lock.read_text("utf-8"), re.MULTILINE)[0]
    ask = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--python-version", "3.11", "-d", str(wheels)]
    subprocess.run([*ask, "--only-binary=:all:", f"torchvision=={version}"], check=True, timeout=600)
    [original] = wheels.glob(f"torchvision-{version}-*.whl")
    wheel = original.with_name(original.name.replace(version, f"{version}+cpu", 1))
    _repack(original, wheel, version)
    original.unlink()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    locked = re.sub(
        r"(torchvision==\S+ \\\n    --hash=sha256:)[0-9a-f]{64}", rf"\g<1>{digest}", lock.read_text("utf-8")
    )
    lock.write_text(locked, "utf-8")


def _repack(original: Path, wheel: Path, version: str) -> None:
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            if ".so" in name or name.endswith("RECORD"):
                continue
            content = source.read(name)
            if name.endswith("torchvision/extension.py"):
                content = content.replace(b"import torch\n", b"import torch\n" + DECLARED.encode(), 1)
            if name.endswith("METADATA"):
                content = content.replace(f"Version: {version}".encode(), f"Version: {version}+cpu".encode(), 1)
            target.writestr(name.replace(f"torchvision-{version}.", f"torchvision-{version}+cpu."), content)
        target.writestr(f"torchvision-{version}+cpu.dist-info/RECORD", "")
