"""Allocator: keeps freed memory in the process, so that each batch and each picture finds its pages where it left them.

glibc gives blocks of more than 128 KiB to 32 MiB back to the system when they are freed and fetches them anew, page by
page and zeroed. A decoded 1080p picture is 1,500 pages, a batch's activations some 100,000. Never touches another C
library's allocator, and never overrides what an operator has set.
"""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Final

import structlog

# Parameter of mallopt (malloc.h), its environment variable, and the value.
_SETTINGS: Final = (
    (-4, "MALLOC_MMAP_MAX_", 0),  # no block has a mapping of its own, however large
    (-1, "MALLOC_TRIM_THRESHOLD_", 1 << 30),  # bytes free at the heap's end before it shrinks
    (-2, "MALLOC_TOP_PAD_", 64 << 20),  # bytes by which the heap grows at least
    # Further arenas consist of heaps of 64 MiB, in which a batch's activations hardly fit: they would come and go.
    (-8, "MALLOC_ARENA_MAX", 1),
)


def tune_allocator(environment: Mapping[str, str] = os.environ) -> None:
    """Set glibc's allocator for large blocks that come and go. Once, at a process's start, before it has threads.

        What the operator has set by glibc's own variables stays as it is. Nothing happens on another C library (musl,
        macOS).

        bench/allocator.py, two threads at once on two cores: a 1080p JPEG decodes with 4 page faults instead of 1,987.
    A picture through eager coat_lite_mini at batch 8 takes 500 to 1,200 instead of 7,300 to 7,800, in no more memory
    (1.3 GB); without the limit to one arena 2,300 to 2,800, in 1.6 GB. What that is worth in pictures a second is
    still to be measured: the machine was too busy to tell.
    """
    log = structlog.get_logger("allocator")
    if platform.libc_ver()[0] != "glibc" or not (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        log.debug("the allocator is left as it is: it is not glibc's")
        return
    tunables = environment.get("GLIBC_TUNABLES", "")
    done = {
        variable: mallopt(parameter, value) == 1
        for parameter, variable, value in _SETTINGS
        if variable not in environment and "glibc.malloc." not in tunables
    }
    log.debug("the allocator keeps what is freed", settings=done)
