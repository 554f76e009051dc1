"""`coatstream classify`: labels for pictures and clips, here and now, without Redis."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.capture.jpegs import is_whole
from coatstream.commands.terminal import complain, passed_over, table
from coatstream.engine.loading import exact, load_engine
from coatstream.engine.protocol import Engine
from coatstream.errors import CoatstreamError, ConfigError, redact
from coatstream.frames.decoding import decode
from coatstream.frames.files import expand, kind_of, readable_name, readable_path
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
    reading = _Reading()
    found = list(expand(paths, reading.pass_over))
    if not found:
        raise ConfigError(f"no pictures or clips in {', '.join(paths)}")
    if not any(Path(path).exists() for path in found):  # the model takes seconds to load
        raise ConfigError(f"no such file: {', '.join(found)}")
    logs.configure(logs.quiet(settings.log))
    engine = load_engine(exact(settings.model), settings.batch)
    frames = _frames(found, engine, settings.queue, fps=fps, reading=reading)
    documents = _documents(frames, engine, batch_size=settings.batch.max_size)
    if as_json:
        for labels in documents:
            print(labels.model_dump_json(by_alias=True), flush=True)
    else:
        _show(documents, engine)
    return reading.concluded()


@dataclass(slots=True)
class _Reading:
    """What came of it so far.

    damaged  packets and pictures of clips that could not be decoded, or not in full
    skipped  pictures and clips that could not be read
    """

    frames: int = 0
    damaged: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files of folders that are neither pictures nor clips

    def pass_over(self, path: Path) -> None:
        self.others.append(path.name)

    def note_damage(self, path: str) -> None:
        """A picture was read, and a part of it is missing."""
        self.damaged += 1
        self.faults.append(f"{path}: a part of it is damaged or missing")

    def note(self, path: str, camera: Camera) -> None:
        """A clip was read to its end."""
        if camera.damaged:
            self.damaged += camera.damaged
            self.faults.append(redact(f"{path}: {camera.damaged} damaged places, {camera.pictures} pictures read"))

    def concluded(self) -> int:
        """Report it on stderr; the exit code."""
        for fault in self.faults:
            complain(fault)
        if self.others:
            complain(passed_over(self.others))
        if self.faults:
            complain(f"{self.frames} frames read, {self.damaged} damaged, {self.skipped} skipped")
        return int(bool(self.faults))


def _frames(
    paths: Iterable[str], engine: Engine, limits: QueueSettings, *, fps: float, reading: _Reading
) -> Iterator[Frame]:
    """Every frame that can be read; what cannot is noted, and the rest goes on."""
    for path in paths:
        try:
            clip = kind_of(Path(path)) == "clip"
            for frame in _clip(path, engine, fps, reading) if clip else [_picture(path, engine, limits, reading)]:
                reading.frames += 1
                yield frame
        except (CoatstreamError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            reading.skipped += 1
            reading.faults.append(redact(f"{readable_name(path)}: {reason}"))


def _picture(path: str, engine: Engine, limits: QueueSettings, reading: _Reading) -> Frame:
    if (size := Path(path).stat().st_size) > limits.max_bytes:
        raise ConfigError(f"{size} bytes are more than queue.max_bytes ({limits.max_bytes})")
    data = Path(path).read_bytes()
    image = decode(data, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
    if not is_whole(data):
        reading.note_damage(readable_name(path))
    return Frame(
        source=readable_name(path),
        frame_id=readable_name(Path(path).name),
        captured_at=time.time(),
        pixels=prepare(image, engine.spec),
        width=image.shape[1],
        height=image.shape[0],
    )


def _clip(path: str, engine: Engine, fps: float, reading: _Reading) -> Iterator[Frame]:
    """All frames of a clip, read without loss; a clip that cannot be opened is not tried again."""
    source = readable_name(path)
    with readable_path(Path(path)) as file:
        settings = CameraSettings(name=source[-128:], url=SecretStr(str(file)), fps=fps, realtime=False)
        camera = Camera(settings, prepare=partial(prepare, spec=engine.spec))
        with closing(camera.frames(threading.Event())) as frames:
            for number, frame in enumerate(frames):
                yield Frame(
                    source=source,
                    frame_id=f"{Path(source).name}#{number}",
                    captured_at=frame.captured_at,
                    pixels=frame.pixels,
                    width=frame.width,
                    height=frame.height,
                )
    reading.note(source, camera)


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
