"""Hardware that decodes: what of it FFmpeg was built for and this machine has."""

from functools import cache
from typing import Final

from av import CodecContext
from av.codec.hwaccel import HWAccel, hwdevices_available

_BEST_FIRST: Final = ("cuda", "qsv", "vaapi")


def hardware(wanted: str) -> HWAccel | None:
    """The device for `auto`, or one by its name; None, the CPU, for `none` and where there is no such device.

    What a device cannot decode, the CPU decodes. Pictures come back into this machine's memory.
    """
    names = {"none": (), "auto": _BEST_FIRST}.get(wanted, (wanted,))
    found = next((name for name in names if is_there(name)), None)
    return HWAccel(device_type=found, allow_software_fallback=True) if found else None


@cache
def is_there(name: str) -> bool:
    """Whether FFmpeg's H.264 decoder can use such a device here."""
    if name not in hwdevices_available():
        return False
    try:
        return CodecContext.create("h264", "r", hwaccel=HWAccel(device_type=name)).is_hwaccel
    except Exception:  # what a driver that is not there raises differs from device to device
        return False
