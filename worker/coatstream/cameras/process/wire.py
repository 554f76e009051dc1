"""What passes between the worker and the process that reads a camera: an order one way, messages the other.

The order is pickled, since the worker wrote it. A message never is: its sender decodes bytes from outside, which may
have taken it over, so the worker checks all of it for type, size and range. A message is a head of two lengths, JSON,
and for a picture the pixels, which have the one size that the model wants, and the thumbnail.
"""

import json
import pickle
import select
import socket
import struct
import time
from dataclasses import dataclass, replace
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coatstream.cameras.capture.steps import Step
from coatstream.errors import CoatstreamError, DeadReason, DownReason, redact
from coatstream.frames.frame import THUMBNAIL, Frame, InputSpec, Vitals
from coatstream.settings.model import CameraSettings

MAX_TEXT: Final = 300  # characters of an error
MAX_COSTS: Final = 200  # observations in one message
MOST_VIEWS: Final = 16  # inputs of the model in one message
_MAX_JSON: Final = 65_536  # bytes
_HEAD: Final = struct.Struct("<II")  # bytes of JSON, bytes of pixels and thumbnail
_ORDER: Final = struct.Struct("<I")

STAGES: Final = ("decode", "prepare")

Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Side = Annotated[int, Field(ge=1, le=65_535)]
Stage = Annotated[str, Field(pattern=f"^({'|'.join(STAGES)})$")]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class HungUp(CoatstreamError):
    """The other side has closed its end, or died."""


class Nonsense(CoatstreamError):
    """The other side sent what is no message: it is broken, or under the control of what it decoded."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is to read, and for which model. `shelf`: the descriptor of its picture shelf, in this process."""

    settings: CameraSettings
    spec: InputSpec
    shelf: int | None = None


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class Bad(_Checked):
    """Pictures that were due and could not be used, since the last message: how many, and why the last one."""

    reason: DeadReason
    times: Annotated[int, Field(ge=1, le=100_000)]
    message: Text


class Loss(_Checked):
    """A SourceLost."""

    reason: DownReason
    message: Text
    slow: bool


class Tally(_Checked):
    """The counts, which are in every message.

    grabbed, replaced, cpu    from the process's start: pictures, pictures, CPU seconds of decoding and preparing
    damaged                   likewise: packets and pictures that could not be decoded, or not in full
    software                  hardware was to decode, and there is none: the CPU does
    costs, bad                since the last message; of the costs the newest ones only
    """

    grabbed: Count = 0
    replaced: Count = 0
    damaged: Count = 0
    software: bool = False
    cpu: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    costs: Annotated[tuple[tuple[Stage, Seconds], ...], Field(max_length=MAX_COSTS)] = ()
    bad: Annotated[tuple[Bad, ...], Field(max_length=len(DeadReason))] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A tally and, besides, nothing (a heartbeat), a new step, a frame, or the end and its reason."""

    tally: Tally
    step: Step | None = None
    frame: Frame | None = None
    loss: Loss | None = None
    ended: bool = False


class _VitalsFields(_Checked):
    brightness: Finite
    contrast: Finite
    sharpness: Finite
    damage: Count
    keyframes: Count = 1
    fingerprint: Annotated[int, Field(ge=-(2**63), lt=2**64)]


class _PictureFields(_Checked):
    frame_id: Annotated[str, Field(min_length=1, max_length=256)]
    captured_at: Finite
    width: Side
    height: Side
    views: Annotated[int, Field(ge=1, le=MOST_VIEWS)] = 1
    vitals: _VitalsFields | None
    meta: Annotated[str, Field(max_length=4096)] | None = None


class _MessageFields(_Checked):
    tally: Tally
    step: Step | None = None
    picture: _PictureFields | None = None
    loss: Loss | None = None
    ended: bool = False


# ---- the process's side


def receive_order(work: socket.socket) -> Order | None:
    """The first thing that the worker sends, or None where it has hung up."""
    work.settimeout(None)
    head, descriptors, _, _ = socket.recv_fds(work, _ORDER.size, 1, socket.MSG_WAITALL)
    if len(head) < _ORDER.size:
        return None
    (length,) = _ORDER.unpack(head)
    data = work.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        return None
    order: Order = pickle.loads(data)  # noqa: S301  (the worker wrote it)
    return replace(order, shelf=descriptors[0] if descriptors else None)


def send(work: socket.socket, message: Message) -> None:
    """Waits as long as the worker does not read. Raises OSError when it has hung up."""
    frame = message.frame
    content = _MessageFields(
        tally=message.tally,
        step=message.step,
        picture=None if frame is None else _described(frame),
        loss=message.loss,
        ended=message.ended,
    )
    text = content.model_dump_json(exclude_defaults=True, exclude_none=False).encode()
    parts: list[NDArray[np.uint8]] = []
    if frame is not None:
        parts = [frame.pixels] if (vitals := frame.vitals) is None else [frame.pixels, vitals.thumbnail, vitals.colours]
    work.sendall(_HEAD.pack(len(text), sum(part.nbytes for part in parts)) + text)
    for part in parts:
        work.sendall(np.ascontiguousarray(part).data)


def _described(frame: Frame) -> _PictureFields:
    vitals = frame.vitals
    return _PictureFields(
        frame_id=frame.frame_id,
        captured_at=frame.captured_at,
        width=frame.width,
        height=frame.height,
        views=len(frame.views),
        meta=frame.meta,
        vitals=None
        if vitals is None
        else _VitalsFields(
            brightness=float(vitals.brightness),
            contrast=float(vitals.contrast),
            sharpness=float(vitals.sharpness),
            damage=int(vitals.damage),
            keyframes=int(vitals.keyframes),
            fingerprint=int(vitals.fingerprint),
        ),
    )


def one_line(error: object) -> str:
    """An error for a message: without credentials, and short."""
    return " ".join(redact(str(error)).split())[:MAX_TEXT]


# ---- the worker's side


def send_order(work: socket.socket, order: Order) -> None:
    """Raises HungUp."""
    data = pickle.dumps(order)
    try:
        socket.send_fds(work, [_ORDER.pack(len(data))], [] if order.shelf is None else [order.shelf])
        work.sendall(data)
    except OSError:
        raise HungUp from None


class Inbox:
    """Reads whole messages from a socket. Never waits longer than the caller allows, whatever the sender does."""

    def __init__(self, work: socket.socket, *, source: str, spec: InputSpec) -> None:
        self._work = work
        self._source = source
        self._shape = spec.height, spec.width, 3
        self._readable = select.poll()
        self._readable.register(work, select.POLLIN)
        work.setblocking(False)
        self._expect_head()

    def receive(self, within: float) -> Message | None:
        """The next message, or None when it is not here within so many seconds. Raises HungUp and Nonsense."""
        until = time.monotonic() + within
        while True:
            while self._filled < len(self._wanted):
                if not self._fill() and not self._readable.poll(max(0.0, until - time.monotonic()) * 1000):
                    return None
            message = self._advance()
            if message is not None:
                return message

    def ask_for_next(self) -> None:
        """Ask for the next picture, whether it is due or not. Raises HungUp."""
        try:
            self._work.sendall(b"!")
        except OSError:
            raise HungUp from None

    def _fill(self) -> bool:
        """Take what is there of the part that comes next. False: nothing is there."""
        try:
            count = self._work.recv_into(self._wanted[self._filled :])
        except BlockingIOError:
            return False
        except OSError:  # reset, since it died with something of ours unread
            count = 0
        if count == 0:
            raise HungUp
        self._filled += count
        return True

    def _expect_head(self) -> None:
        self._content: _MessageFields | None = None
        self._head: tuple[int, int] | None = None
        self._want(memoryview(bytearray(_HEAD.size)))

    def _want(self, buffer: memoryview) -> None:
        self._wanted = buffer
        self._filled = 0

    def _advance(self) -> Message | None:
        """A part is complete: go on to the next one, or make a message of them all."""
        if self._head is None:
            self._head = _checked_head(bytes(self._wanted))
            self._want(memoryview(bytearray(self._head[0])))
            return None
        if self._content is None:
            self._content = _checked_content(bytes(self._wanted))
            size = self._size(self._content.picture)
            if size != self._head[1]:
                raise Nonsense(f"{self._head[1]} bytes of pixels instead of {size}")
            if size:
                self._want(np.empty(size, np.uint8).data)
                return None
        message = self._message(self._content)
        self._expect_head()
        return message

    def _size(self, picture: _PictureFields | None) -> int:
        if picture is None:
            return 0
        thumbnail = 0 if picture.vitals is None else 3 * THUMBNAIL[0] * THUMBNAIL[1]
        return picture.views * self._shape[0] * self._shape[1] * self._shape[2] + thumbnail

    def _message(self, content: _MessageFields) -> Message:
        frame = None if content.picture is None else self._frame(content.picture)
        return Message(content.tally, content.step, frame, content.loss, content.ended)

    def _frame(self, picture: _PictureFields) -> Frame:
        data = np.frombuffer(self._wanted, np.uint8)
        shape = self._shape if picture.views == 1 else (picture.views, *self._shape)
        area = picture.views * self._shape[0] * self._shape[1] * self._shape[2]
        vitals = None
        if picture.vitals is not None:
            # A copy, or each thumbnail that is kept would keep the pixels alive.
            planes = data[area:].reshape(3, *THUMBNAIL).copy()
            vitals = Vitals(**picture.vitals.model_dump(), thumbnail=planes[0], colours=planes[1:])
        return Frame(
            source=self._source,
            frame_id=picture.frame_id,
            captured_at=picture.captured_at,
            pixels=data[:area].reshape(shape),
            width=picture.width,
            height=picture.height,
            vitals=vitals,
            meta=checked_meta(picture.meta),
        )


def checked_meta(meta: str | None) -> str | None:
    """A frame's `meta` goes into documents as it is, so it must be one JSON object. Raises Nonsense."""
    if meta is None:
        return None
    try:
        wrong = not isinstance(json.loads(meta), dict)
    except ValueError:
        wrong = True
    if wrong:
        raise Nonsense("a frame's meta that is no JSON object")
    return meta


def _checked_head(head: bytes) -> tuple[int, int]:
    length, size = _HEAD.unpack(head)
    if not 2 <= length <= _MAX_JSON:
        raise Nonsense(f"a message of {length} bytes, not of 2 to {_MAX_JSON}")
    return length, size


def _checked_content(text: bytes) -> _MessageFields:
    try:
        return _MessageFields.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise Nonsense(f"a message with a wrong {'.'.join(map(str, first['loc'])) or 'form'}: {first['msg']}") from None
