"""What it costs that every camera is read in a process of its own: memory, time to start, time per frame.

    python -m bench camera-process [--cameras 8] [--frames 2000]

Prints one JSON line for each kind of preparation: `area` needs no torch (engine noop), `bicubic` does. The cameras are
small (320 x 240 at 25 pictures/s), so that the memory is the process's and hardly the decoder's.
"""

import json
import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.source import CameraProcess
from coatstream.cameras.process.wire import Inbox, Message, Tally, send
from coatstream.frames.frame import THUMBNAIL, Frame, InputSpec, Vitals
from coatstream.settings.model import CameraSettings

from tests.support.cameras.rtsp import RtspCamera


def memory_of(pid: int | None) -> dict[str, float]:
    """MB: resident; the process's own (what would be free if it ended); its own with its share of what is shared."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"] / 1024, "uss": own / 1024, "pss": kilobytes["Pss"] / 1024}


def median_of(memories: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(memory[name] for memory in memories), 1) for name in memories[0]}


def births(fork_server: ForkServer, count: int = 30) -> float:
    """Milliseconds from the wish for a process to its being there, median."""
    times = []
    for _ in range(count):
        before = time.perf_counter()
        child = fork_server.start(threading.Event())
        times.append(time.perf_counter() - before)
        if child is not None:
            with child:
                pass
    return round(1000 * median(times), 2)


def running(fork_server: ForkServer, spec: InputSpec, cameras: int) -> dict[str, object]:
    """Memory of processes that read, once each has given 25 frames; and the time to the first frame."""
    with ExitStack() as stack:
        server = stack.enter_context(RtspCamera())
        sources, first = [], []
        for number in range(cameras):
            settings = CameraSettings.model_validate({"name": f"camera-{number}", "url": server.url(), "fps": 0})
            source = CameraProcess(settings, spec, fork_server=fork_server, lease=CameraLease.unshared())
            frames = source.frames(threading.Event())
            stack.callback(frames.close)
            before = time.perf_counter()
            for count, _ in enumerate(frames):
                if count == 0:
                    first.append(time.perf_counter() - before)
                if count == 25:
                    break
            sources.append(source)
        memories = [memory_of(source.stats().pid) for source in sources]
        return {"child_mb": median_of(memories), "first_frame_s": round(median(first), 2)}


def per_frame(spec: InputSpec, count: int) -> dict[str, float]:
    """Milliseconds for one frame from process to process: elapsed, and CPU of either side."""
    pixels = np.zeros((spec.height, spec.width, 3), np.uint8)
    vitals = Vitals(100.0, 20.0, 300.0, 0, 1, np.zeros(THUMBNAIL, np.uint8))
    frame = Frame("camera", "camera-1-1", time.time(), pixels, 1920, 1080, vitals=vitals)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        for number in range(count):
            send(theirs, Message(Tally(grabbed=number, costs=(("decode", 0.004), ("prepare", 0.001))), frame=frame))
        os.write(theirs.fileno(), int(1e9 * time.process_time() / count).to_bytes(8, "little"))
        os._exit(0)
    theirs.close()
    with ours:
        inbox = Inbox(ours, source="camera", spec=spec)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            assert inbox.receive(10) is not None
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        ours.setblocking(True)
        sender = int.from_bytes(ours.recv(8, socket.MSG_WAITALL), "little") / 1e9
    os.waitpid(pid, 0)
    return {
        name: round(1000 * value, 3)
        for name, value in {"elapsed": wall / count, "cpu_worker": cpu / count, "cpu_child": sender}.items()
    }


def main(cameras: int = 8, frames: int = 2000) -> None:
    for interpolation in ("area", "bicubic"):
        spec = InputSpec(224, 224, 0.9, "center", interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        frame_ms = per_frame(spec, frames)
        before = time.perf_counter()
        with ForkServer(spec) as fork_server:
            child = fork_server.start(threading.Event())
            ready = time.perf_counter() - before
            if child is not None:
                with child:
                    pass
            stats = {
                "preparation": interpolation,
                "fork_server_ready_s": round(ready, 2),
                "birth_ms": births(fork_server),
                **running(fork_server, spec, cameras),
                "fork_server_mb": median_of([memory_of(fork_server.pid)]),
                "frame_ms": frame_ms,
            }
        print(json.dumps(stats))
