"""`coatstream classify`: labels for pictures and clips, here and now, without Redis."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from coatstream.cameras.capture.camera import Camera
from coatstream.commands.terminal import complain, table
from coatstream.engine.loading import exact, load_engine
from coatstream.engine.protocol import Engine
from coatstream.errors import CoatstreamError, ConfigError, redact
from coatstream.frames.decoding import decode
from coatstream.frames.files import expand, is_clip
from coatstream.frames.frame import Frame
from coatstream.frames.resizing import prepare
from coatstream.pipeline.inference import prediction_of
from coatstream.results.documents import LabelDocument, document
from coatstream.settings.model import CameraSettings, QueueSettings, SettingsTree
from coatstream.telemetry import logs
from coatstream.telemetry.identity import worker_name

WIDTH = 160  # characters without a terminal: paths are long


def run_classify(settings: SettingsTree, paths: Sequence[str], *, fps: float, as_json: bool) -> int:
    """A table, or one JSON document a line, in the order given. 1 if a path could not be read, else 0.

    Raises EngineError, and ConfigError if there is nothing to classify.
    """
    found = list(expand(paths))
    if not found:
        raise ConfigError(f"no pictures or clips in {', '.join(paths)}")
    if not any(Path(path).exists() for path in found):  # the model takes seconds to load
        raise ConfigError(f"no such file: {', '.join(found)}")
    logs.configure(logs.quiet(settings.log))
    engine = load_engine(exact(settings.model), settings.batch)
    faults: list[str] = []
    frames = _frames(found, engine, settings.queue, fps=fps, faults=faults)
    documents = _documents(frames, engine, batch_size=settings.batch.max_size)
    if as_json:
        for labels in documents:
            print(labels.model_dump_json(by_alias=True), flush=True)
    else:
        _show(documents, engine)
    for fault in faults:
        complain(fault)
    return int(bool(faults))


def _frames(
    paths: Iterable[str], engine: Engine, limits: QueueSettings, *, fps: float, faults: list[str]
) -> Iterator[Frame]:
    """Every frame that can be read; what cannot is noted in `faults`, and the rest goes on."""
    for path in paths:
        try:
            if is_clip(Path(path)):
                yield from _clip(path, engine, fps)
            else:
                yield _picture(path, engine, limits)
        except (CoatstreamError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            faults.append(redact(f"{path}: {reason}"))


def _picture(path: str, engine: Engine, limits: QueueSettings) -> Frame:
    if (size := Path(path).stat().st_size) > limits.max_bytes:
        raise ConfigError(f"{size} bytes are more than queue.max_bytes ({limits.max_bytes})")
    image = decode(Path(path).read_bytes(), max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
    return Frame(
        source=path,
        frame_id=Path(path).name,
        captured_at=time.time(),
        pixels=prepare(image, engine.spec),
        width=image.shape[1],
        height=image.shape[0],
    )


def _clip(path: str, engine: Engine, fps: float) -> Iterator[Frame]:
    """All frames of a clip, read without loss; a clip that cannot be opened is not tried again."""
    settings = CameraSettings(name=path[-128:], url=SecretStr(str(Path(path).absolute())), fps=fps, realtime=False)
    camera = Camera(settings, prepare=partial(prepare, spec=engine.spec))
    with closing(camera.frames(threading.Event())) as frames:
        for number, frame in enumerate(frames):
            yield Frame(
                source=path,
                frame_id=f"{Path(path).name}#{number}",
                captured_at=frame.captured_at,
                pixels=frame.pixels,
                width=frame.width,
                height=frame.height,
            )


def _documents(frames: Iterator[Frame], engine: Engine, *, batch_size: int) -> Iterator[LabelDocument]:
    worker = worker_name()
    while batch := list(islice(frames, batch_size)):
        scores = engine.classify(np.stack([frame.pixels for frame in batch]))
        for row, frame in enumerate(batch):
            prediction = prediction_of(frame, scores, row, engine)
            yield document(prediction, model=engine.info, worker=worker, published_at=time.time())


def _show(documents: Iterable[LabelDocument], engine: Engine) -> None:
    info = engine.info
    note = " [red]random weights: the labels mean nothing[/]" if info.weights == "random" else ""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(f"{escape(info.name)}, weights {escape(info.weights)}{note}", highlight=False)
    made = table("frame", "index", "wnid", "label", "score", right=("score",))
    for labels in documents:
        for rank, label in enumerate(labels.labels):
            name = labels.source if labels.frame_id == Path(labels.source).name else labels.frame_id
            made.add_row(
                escape(name) if rank == 0 else "",
                str(label.index),
                label.wnid or "",
                escape(label.label),
                f"{label.score:.1%}",
            )
        if labels.embedding is not None:
            made.add_row("", "", "", f"embedding: float16[{info.num_features}], in full with --json", "")
    if made.rows:
        console.print(made)
