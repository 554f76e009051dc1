"""A decoded frame of video as a player shows it: square pixels, upright, in RGB."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

import numpy as np
from av import VideoCodecContext, VideoFrame, VideoStream
from av.buffer import Buffer
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter

from coatstream.frames.frame import Pixels

_WIDEST: Final = 65_535  # pixels of a side: what a frame may say it has
_ODDEST: Final = 16  # times as wide as high a pixel may be, or as high as wide; damage says anything up to 65,535
_MOST: Final = 50_000_000  # pixels that a frame may be stretched to, as queue.max_pixels


_PLAIN: Final = frozenset({"yuv420p", "yuvj420p"})  # converted without a look at where their colours are sampled
_MATRICES: Final = frozenset(range(10)) - {8}  # that libswscale converts from; H.273, 8.3, names more
_CONSTANT: Final = 10  # BT.2020 with constant luminance


class Renderer:
    """Renders the frames of one track. Keeps one scaler, which libswscale sets up anew only where sizes change."""

    def __init__(self, stream: VideoStream) -> None:
        self._codec: VideoCodecContext = stream.codec_context
        self._scaler = VideoReformatter()
        self._tags = _Tags()
        container, coded = stream.sample_aspect_ratio, self._codec.sample_aspect_ratio
        # FFmpeg prefers what the container says of the pixels' shape to what the pictures say.
        self._fixed = container if container and container != coded else None
        self._shape: Fraction | None = None
        self._size = (0, 0)
        self._turn = _Turn(False, False, False)
        self._rotation: int | None = None

    def note(self, frame: VideoFrame) -> None:
        """Remember the pixels' shape. PyAV tells it of the decoder, which may be some frames ahead: it changes with a
        key frame only.
        """
        size = frame.width, frame.height
        if frame.key_frame or size != self._size:
            self._shape, self._size = self._codec.sample_aspect_ratio, size

    def render(self, frame: VideoFrame) -> Pixels:
        """uint8 [height, width, 3] RGB. Range and matrix of the colours are the frame's own; unsaid, BT.601 limited."""
        turned = self._turned(frame)
        shape = self._fixed or self._shape or Fraction(1)
        width, height = frame.width, frame.height
        if shape != 1 and Fraction(1, _ODDEST) <= shape <= _ODDEST:
            # FFmpeg's filters keep the height that is seen, and so stretch the coded height of a picture on its side.
            width, height = (width, _side(height / shape)) if turned.transposed else (_side(width * shape), height)
        if width * height > _MOST:
            width, height = frame.width, frame.height
        scaled = (width, height) != (frame.width, frame.height)
        rgb = self._scaler.reformat(
            self._tags.corrected(frame, scaled=scaled),
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.BICUBIC if scaled else Interpolation.BILINEAR,
            threads=1,
        )
        plane = rgb.planes[0]
        pixels: Pixels = np.ndarray((height, width, 3), np.uint8, memoryview(plane), strides=(plane.line_size, 3, 1))
        return turned.apply(pixels)

    def _turned(self, frame: VideoFrame) -> "_Turn":
        """Looked up where the rotation changes only: PyAV's side data keeps its frame, 3 MB at 1080p, until the
        garbage collector comes.
        """
        if frame.rotation != self._rotation:
            self._turn, self._rotation = _Turn.of(frame), frame.rotation
        return self._turn


def _side(length: Fraction) -> int:
    return max(1, min(_WIDEST, round(length)))


class _Tags:
    """Takes from frames what libswscale obeys by itself since FFmpeg 8, unlike the ffmpeg command and most players.

    It moves colours by a quarter of a pixel where a frame says how they were sampled, but only where it scales or the
    frame has 10 bits; and it refuses frames of a rare matrix, for which it has a default otherwise.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._made_for: tuple[int, int, str, int] | None = None

    def corrected(self, frame: VideoFrame, *, scaled: bool) -> VideoFrame:
        """The same pixels. Takes 3 us."""
        matrix = int(frame.colorspace)
        if not scaled and matrix in _MATRICES and frame.format.name in _PLAIN:
            return frame
        wanted = frame.width, frame.height, frame.format.name, matrix
        if self._graph is None or wanted != self._made_for:
            self._graph, self._made_for = self._new_graph(frame, matrix), wanted
        self._graph.vpush(frame)
        return self._graph.vpull()

    @staticmethod
    def _new_graph(frame: VideoFrame, matrix: int) -> Graph:
        graph = Graph()
        tags = "chroma_location=unspecified"
        if matrix not in _MATRICES:
            tags += ":colorspace=" + ("bt2020nc" if matrix == _CONSTANT else "unknown")
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        source.link_to(setter := graph.add("setparams", tags))
        setter.link_to(graph.add("buffersink"))
        graph.configure()
        return graph


class _Turn:
    """A display matrix, as far as it is made of quarter turns and mirrors; the nearest of these otherwise."""

    def __init__(self, transposed: bool, mirrored: bool, upside_down: bool) -> None:
        self.transposed, self._mirrored, self._upside_down = transposed, mirrored, upside_down

    @classmethod
    def of(cls, frame: VideoFrame) -> "_Turn":
        side_data: Mapping[str, Buffer] = frame.side_data  # type: ignore[assignment]  # the stub is not complete
        if "DISPLAYMATRIX" not in side_data:
            return cls(False, False, False)
        # A point (x, y) is shown at (a x + c y, b x + d y); ISO/IEC 14496-12, 6.2.2.
        a, b, _, c, d, *_ = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32, 9).astype(np.int64)
        transposed = bool(abs(b) + abs(c) > abs(a) + abs(d))
        return cls(transposed, bool((c if transposed else a) < 0), bool((b if transposed else d) < 0))

    def apply(self, pixels: Pixels) -> Pixels:
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self._upside_down:
            pixels = pixels[::-1]
        if self._mirrored:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels) if self.transposed or self._mirrored else pixels
