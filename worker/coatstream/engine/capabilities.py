"""The arithmetic that a device has in hardware. A precision that must be emulated is slower than float32."""

from pathlib import Path
from typing import Final

_BF16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two, and ARM's
_FLAGS: Final = ("flags", "features")
_MODEL: Final = ("model name", "cpu part")


def precisions(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """What `model.precision: auto` tries on this device, in this order."""
    if device.startswith("cuda"):
        import torch

        return ("bf16", "fp32") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16", "fp32")
    return ("bf16", "fp32") if device == "cpu" and _cpu_has_bf16(cpuinfo) else ("fp32",)


def _cpu_has_bf16(cpuinfo: Path) -> bool:
    return not _BF16_FLAGS.isdisjoint(_line(cpuinfo, *_FLAGS).split())


def _line(cpuinfo: Path, *names: str) -> str:
    """The first line that begins with one of these names, without it; empty where Linux does not list it."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.lower().startswith(names)), "")


def processor(device: str = "cpu", cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What computes, and what it can do, in a line: another one may want another engine."""
    cpu = " | ".join(dict.fromkeys(filter(None, (_line(cpuinfo, *names) for names in (_MODEL, _FLAGS)))))
    if not device.startswith("cuda"):
        return f"{device} | {cpu}"
    import torch

    return f"{torch.cuda.get_device_name(device)} | {cpu}"
