"""Reads streams and files with PyAV (FFmpeg): chooses the track, decodes, counts what is damaged, and reads on.

Options, as measured with FFmpeg 8.1:

* `fpsprobesize=0`: the camera's rate is not estimated, since it is not believed. RTSP opens as soon as the first key
  frame has come; before, it took a second longer.
* `probesize=32`, RTSP only: no pictures are looked at to guess the order of B-frames, so a backlog of 1 is left.
* `rtsp_transport`: as set, and nothing else.
* `live_start_index=-1`: HLS begins with the newest segment instead of the third to last. A segment may have any name.
* `tls_verify=1`: FFmpeg verifies nothing by default. It hands this on to RTSP's connection, but not to the segments of
  HLS, of which only the playlist is verified.
* `protocol_whitelist`: a playlist or an odd URL reads no local file. A file is handed over open: FFmpeg sees bytes and
  no path, so a playlist in it leads nowhere.
* One decoder thread: each further one delays the stream by one picture and takes 6 MB at 1080p.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Final

import av
from av import Packet, VideoCodecContext, VideoFrame, VideoStream
from av.codec.context import Flags
from av.container import InputContainer
from av.error import EOFError as EndOfFile
from av.error import ExitError, FFmpegError, InvalidDataError
from av.stream import Discard, Disposition

from coatstream.cameras.capture.hardware import hardware
from coatstream.cameras.capture.reader import Costs, Trouble
from coatstream.cameras.capture.rendering import Renderer
from coatstream.errors import BadFrame, DeadReason, DownReason
from coatstream.frames.frame import Pixels

if TYPE_CHECKING:
    _Packet = Packet[VideoStream]  # a class that is generic in its stub only

av.logging.set_level(av.logging.PANIC)  # FFmpeg prints nothing, and its exceptions know its last error line

_STILL: Final = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_MOST_BROKEN: Final = 100  # errors of the container in a row, after which there is nothing more to be read
_NETWORK: Final = {"protocol_whitelist": "rtsp,rtp,udp,tcp,tls,http,https,crypto,data", "max_redirects": "0"}
_HLS: Final = {
    "live_start_index": "-1",
    "allowed_extensions": "ALL",
    "allowed_segment_extensions": "ALL",
    "extension_picky": "0",
}


class Video(Costs):
    """One open stream or file. Leaving its `with` block closes it, in the thread that reads it: elsewhere PyAV crashes.

    A packet that cannot be decoded is counted, and the next one is read.
    """

    def __init__(
        self,
        file: str | IO[bytes],
        *,
        options: Mapping[str, str],
        open_timeout: float | None = None,
        read_timeout: float | None = None,
        keyframes_only: bool = False,
        acceleration: str = "none",
        playlist: bool = False,
    ) -> None:
        """Raises Trouble and FFmpegError; the latter's text holds the URL."""
        super().__init__()
        self.bursts = playlist
        self._keyframes_only = keyframes_only
        self._keyframes = 0
        self._read_timeout = read_timeout
        timeout = None if open_timeout is None else (open_timeout, read_timeout)
        device = hardware(acceleration)
        form = "hls" if playlist else None  # or FFmpeg looks at its name and the type that the server gives
        self._container: InputContainer = av.open(
            file, "r", form, options=dict(options), timeout=timeout, hwaccel=device, metadata_errors="replace"
        )
        try:
            self._stream = self._chosen(self._container)
            self.software = acceleration != "none" and not self._stream.codec_context.is_hwaccel
            self._renderer = Renderer(self._stream)
            rate = self._stream.guessed_rate or self._stream.average_rate
        except BaseException:
            self._container.close()
            raise
        self._rate = float(rate or 0)
        self._tick = float(self._stream.time_base or 0)  # seconds
        self._packets = self._demuxed()
        self._ready: deque[VideoFrame] = deque()
        self._frame: VideoFrame | None = None
        self._start: float | None = None
        self._broken = 0

    def _chosen(self, container: InputContainer) -> VideoStream:
        """The default track of a film: a cover or a still picture only where there is nothing else."""
        tracks = container.streams.video
        if not tracks:
            raise Trouble(DownReason.NO_VIDEO, "it offers no video")

        def rank(track: VideoStream) -> tuple[bool, bool, int]:
            disposition, codec = track.disposition, _decoder(track)
            area = 0 if codec is None else codec.width * codec.height
            return not disposition & _STILL, bool(disposition & Disposition.default), area

        chosen = max(tracks, key=rank)
        if chosen.disposition & Disposition.dependent:
            raise Trouble(
                DownReason.CODEC, "its picture is made of tiles, as HEIC's often are; convert it to JPEG or PNG"
            )
        if (codec := _decoder(chosen)) is None:
            raise Trouble(DownReason.CODEC, "its pictures are of a kind that cannot be decoded here")
        for stream in container.streams:
            if stream is not chosen:
                stream.discard = Discard.all
        codec.thread_count = 1
        if self._keyframes_only:
            codec.skip_frame = "NONKEY"
        if codec.name == "hevc":  # else it passes over pictures whose reference is lost, and tells nothing of it
            codec.flags |= Flags.output_corrupt
        if codec.name == "mjpeg":
            codec.options = {"err_detect": "explode"}  # else the rest of a picture that is cut off is old memory
        return chosen

    def grab(self) -> bool:
        """Read and decode the next picture."""
        before, began = time.thread_time(), time.monotonic()
        self._frame = None  # its memory is the next one's
        try:
            while not self._ready:
                packet = self._next_packet()
                if packet is None:
                    return False
                self._decode(packet)
                if self._read_timeout is not None and time.monotonic() - began > self._read_timeout:
                    raise Trouble(DownReason.TIMEOUT, f"no picture for {time.monotonic() - began:.1f} s")
        finally:
            self._cost += time.thread_time() - before
        self._frame = self._ready.popleft()
        self.grabbed += 1
        if self._start is None:
            self._start = self._time_of(self._frame)
        return True

    def _demuxed(self) -> "Iterator[_Packet]":
        return self._container.demux(self._stream)

    def _next_packet(self) -> "_Packet | None":
        """Raises Trouble where nothing comes in time."""
        while self._broken < _MOST_BROKEN:
            try:
                packet = next(self._packets, None)
            except ExitError:
                raise Trouble(DownReason.TIMEOUT, f"no picture for {self._read_timeout:.1f} s") from None
            except InvalidDataError:  # a damaged place of a file, which its reader may step over
                self._broken += 1
                self.damaged += 1
                self._packets = self._demuxed()
            except EndOfFile:
                return None
            except FFmpegError:  # the other side is gone, or the rest of a file cannot be read
                self.damaged += self._read_timeout is None
                return None
            else:
                self._broken = 0
                return packet
        return None

    def _decode(self, packet: "_Packet") -> None:
        if self._keyframes_only and packet.size and not packet.is_keyframe:
            return
        try:
            frames = self._stream.codec_context.decode(packet if packet.size else None)
        except FFmpegError:
            self.damaged += packet.size > 0
            return
        for frame in frames:
            self._renderer.note(frame)
            self._keyframes += frame.key_frame
            self.damaged += frame.is_corrupt
            if self._keyframes or not frame.is_corrupt or self._read_timeout is None:
                self._ready.append(frame)  # of a stream that is joined, what comes before its first key frame is grey

    def _time_of(self, frame: VideoFrame) -> float | None:
        return None if frame.pts is None else frame.pts * self._tick  # `frame.time` is NaN for a decoder's last frames

    @property
    def keyframes(self) -> int:
        """Pictures that were coded whole, so far."""
        return self._keyframes

    @property
    def media_time(self) -> float:
        """Seconds from the stream's first picture to the last one."""
        at = None if self._frame is None else self._time_of(self._frame)
        if at is not None and self._start is not None:
            return at - self._start
        return (self.grabbed - 1) / self._rate if self._rate else 0.0  # a raw .h264 file has no timestamps

    @property
    def period(self) -> float:
        """Seconds for which one picture is shown."""
        return 1 / self._rate if self._rate > 0 else 0.04

    def retrieve(self) -> Pixels:
        """The picture that was grabbed last. Raises BadFrame."""
        if self._frame is None:
            raise ValueError("nothing was grabbed")
        before = time.thread_time()
        try:
            return self._renderer.render(self._frame)
        except (FFmpegError, ValueError, MemoryError) as error:
            why = f"the picture cannot be converted ({type(error).__name__})"
            raise BadFrame(DeadReason.UNDECODABLE, why) from None
        finally:
            self._cost += time.thread_time() - before

    def close(self) -> None:
        """Close it, in the thread that reads it."""
        self._ready.clear()
        self._frame = None
        self._packets = iter(())
        self._container.close()


def _decoder(track: VideoStream) -> VideoCodecContext | None:
    """PyAV's stub does not say that there may be none."""
    return track.codec_context


def file_options() -> dict[str, str]:
    """FFmpeg's options for a file that is handed over open."""
    return {"protocol_whitelist": "none"}


def stream_options(*, rtsp_transport: str | None = None, authorities: str | None = None) -> dict[str, str]:
    """FFmpeg's options for a network stream. `authorities`: the file of those whose certificates are believed."""
    options = {**_NETWORK, **_HLS, "fpsprobesize": "0"}
    if rtsp_transport is not None:
        options |= {"probesize": "32", "rtsp_transport": rtsp_transport}
    if authorities is not None:
        options |= {"tls_verify": "1", "ca_file": authorities}
    return options
