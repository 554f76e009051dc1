"""Misbehaviour inside a worker's process, without touching the product: Python imports this file at its start.

Nothing happens unless the variable FAULTS is set; it holds a JSON object: {"seed", "folder", "stall", "share"}.
Then certain greys are trouble for the noop engine, and a `share` of batches stops the whole process for `stall`
seconds, heartbeats and all. The engine also asks for tiny pictures: these tests are about the queue, not about pixels.
Standard library only: this is imported before anything else.
"""

import ctypes
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

KILL, SEGFAULT, STUCK_ONCE, LONG = 251, 252, 253, 254  # greys
# Where the noop engine lies: in this tree, and in the last release that had another layout (tests.upgrade starts it)
ENGINES = ("coatstream.engine.backends.noop", "worker.engine.noop")


class Misbehaviour:
    """One process's troubles. `seed` and the process's id decide which batches stall."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._folder = str(said.get("folder", ""))
        self._stall = float(said.get("stall", 0))
        self._share = float(said.get("share", 0))
        self._seed = said.get("seed", 0)
        self._rng: random.Random | None = None
        self._process = 0

    def of_batch(self, greys: Collection[int]) -> None:
        """What these greys do, now."""
        if KILL in greys:
            os.kill(os.getpid(), signal.SIGKILL)
        if SEGFAULT in greys:
            ctypes.string_at(0)
        if STUCK_ONCE in greys and self._first("stuck"):
            threading.Event().wait()
        if LONG in greys:
            threading.Event().wait(self._stall)
        elif self._share and self._dice().random() < self._share:
            self._count("stalls")
            stop_myself(self._stall)

    def _dice(self) -> random.Random:
        if self._rng is None or self._process != os.getpid():  # workers fork
            self._process = os.getpid()
            self._rng = random.Random(f"{self._seed}-{self._process}")
        return self._rng

    def _count(self, what: str) -> None:
        """One more byte in a file that the harness measures."""
        with open(os.path.join(self._folder, what), "ab") as file:  # noqa: PTH118, PTH123
            file.write(b".")

    def _first(self, what: str) -> bool:
        """True for the first process that asks."""
        try:
            os.close(os.open(os.path.join(self._folder, what), os.O_CREAT | os.O_EXCL))  # noqa: PTH118
        except FileExistsError:
            return False
        return True


def stop_myself(seconds: float) -> None:
    """Send SIGSTOP to this whole process; a shell wakes it again."""
    waker = f"(sleep {seconds}; kill -CONT {os.getpid()}) >/dev/null 2>&1 &"
    subprocess.run(["/bin/sh", "-c", waker], check=False, stdin=subprocess.DEVNULL)
    os.kill(os.getpid(), signal.SIGSTOP)


class _OnImport:
    """Finds the engine's module as usual, and patches it as soon as it has run."""

    def __init__(self, troubles: Misbehaviour) -> None:
        self._troubles = troubles

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in ENGINES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            _patch(module.NoopEngine, self._troubles)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


def _patch(engine: Any, troubles: Misbehaviour) -> None:
    make, classify = engine.__init__, engine.classify

    def small(self: Any, *arguments: Any, **options: Any) -> None:
        from dataclasses import replace

        make(self, *arguments, **options)
        self.spec = replace(self.spec, height=8, width=8, crop_pct=1.0, crop_mode="squash")

    def troubled(self: Any, pixels: Any) -> Any:
        troubles.of_batch(set(pixels[:, 0, 0, 0].tolist()))
        return classify(self, pixels)

    engine.__init__, engine.classify = small, troubled


if "FAULTS" in os.environ:
    sys.meta_path.insert(0, _OnImport(Misbehaviour(json.loads(os.environ["FAULTS"]))))
