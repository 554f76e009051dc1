"""What FFmpeg's log says about one capture: why it did not open, its picture's size, its errors. Never repeats a line.

A line may hold a URL with a password, so nothing that was read leaves this module but numbers and words of our own.
The text is a stranger's: a camera can write into it through its SDP, and so talk us into reopening itself, no more.
"""

import re
from dataclasses import dataclass

from coatstream.errors import DownReason

_LONGEST = 4096  # bytes of one line; what is beyond is dropped


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a camera cannot be read: for the gauge, and for a person."""

    reason: DownReason
    words: str


_STATUS = re.compile(r"(?:method \w+ failed: |HTTP error )(\d{3})\b")
_CONNECTED = re.compile(r"Successfully connected to ")
_BYTES = re.compile(r"Statistics: ([1-9]\d*) bytes read")
_SIZE = re.compile(r"Reinit context to (\d{1,6})x(\d{1,6})\b")
_SCALER = re.compile(r"\[swscaler @ \w+\] deprecated pixel format used")
_MISSED = re.compile(r"RTP: missed (\d{1,6}) packets")
_DAMAGE = re.compile(
    r"error while decoding MB|concealing \d+ DC|Packet corrupt|Could not find ref with POC|huffman table decode error"
    r"|error decoding the picture|Invalid NAL unit size|overread \d+|Frame num gap|RTP: dropping old packet",
    re.IGNORECASE,
)
_TLS = re.compile(
    r"certificate verify failed|certificate.*(?:not trusted|verification)|SSL_CTX_load_verify", re.IGNORECASE
)
_CODEC = re.compile(
    r"platform doesn't support|Unsupported codec|Could not find codec parameters|Decoder .* not found"
    r"|unknown codec|Failed to get pixel format",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"(Connection refused|No route to host|Network is unreachable|Host is down|Failed to resolve hostname"
    r"|Name or service not known)",
    re.IGNORECASE,
)
_TIMED_OUT = re.compile(r"Connection timed out|Operation timed out", re.IGNORECASE)

_STATUSES = {
    401: Cause(DownReason.AUTH, "user or password are wrong or missing (401)"),
    403: Cause(DownReason.AUTH, "this user may not see it (403)"),
    404: Cause(DownReason.REFUSED, "there is no such path on it (404); check what follows the host in its url"),
    453: Cause(DownReason.REFUSED, "it has no room for another viewer (453)"),
    461: Cause(
        DownReason.REFUSED, "it does not offer this transport (461); set transport to the other one, tcp or udp"
    ),
    503: Cause(DownReason.REFUSED, "it is busy or has no room for another viewer (503)"),
}
UNTRUSTED = Cause(DownReason.REFUSED, "its certificate is not trusted; set tls_ca or tls_verify: false")
_UNDECODABLE = Cause(
    DownReason.CODEC, "its pictures are of a kind that cannot be decoded here; choose H.264 on the camera"
)
_NO_VIDEO = Cause(DownReason.NO_VIDEO, "it offers no video")
_UNREACHABLE = {
    "connection refused": "connection refused",
    "no route to host": "no route to host",
    "network is unreachable": "network is unreachable",
    "host is down": "host is down",
    "failed to resolve hostname": "its name is not known",
    "name or service not known": "its name is not known",
}


class DecoderLog:
    """Fed with what FFmpeg wrote to its log since the last time. Keeps no text but the beginning of one line.

    connected   a connection has been made
    answered    bytes have come through it (HTTP only)
    changed     the pictures' size has changed since the first. H.264 says so in words. Of JPEG, and of others of full
                range, it is seen by the scaler that is set up anew at the next taken picture; of HEVC it is not seen
    """

    def __init__(self) -> None:
        self.connected = False
        self.answered = False
        self.changed = False
        self._size: tuple[int, int] | None = None
        self._scalers = 0
        self._damage = 0
        self._cause: Cause | None = None
        self._sdp = False
        self._video = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take in what was written; the beginning of a line waits for its end."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST]
        for line in lines:
            self._take(line[:_LONGEST].decode("utf-8", "replace"))

    @property
    def cause(self) -> Cause | None:
        """Why it cannot be read, as far as the log tells."""
        if self._cause is None and self._sdp and not self._video:
            return _NO_VIDEO
        return self._cause

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the coded pictures, where the decoder tells."""
        return self._size

    def take_damage(self) -> int:
        """Errors of the decoder and packets missed since the last call."""
        damage, self._damage = self._damage, 0
        return damage

    def _take(self, line: str) -> None:
        if line.startswith("m="):
            self._video |= line.startswith("m=video")
        elif line.startswith("v=0"):
            self._sdp = True
        elif _CONNECTED.search(line):
            self.connected, self._cause = True, None  # whatever failed was another of its addresses
        elif _BYTES.search(line):
            self.answered = True
        elif size := _SIZE.search(line):
            self._resize(int(size[1]), int(size[2]))
        elif _SCALER.search(line):
            self._scalers += 1
            self.changed |= self._scalers > 1
        elif missed := _MISSED.search(line):
            self._damage += int(missed[1])
        elif _DAMAGE.search(line):
            self._damage += 1
        else:
            self._cause = _cause_in(line) or self._cause

    def _resize(self, width: int, height: int) -> None:
        self.changed |= self._size is not None and self._size != (width, height)
        self._size = width, height


def _cause_in(line: str) -> Cause | None:
    if status := _STATUS.search(line):
        code = int(status[1])
        return _STATUSES.get(code) or Cause(DownReason.REFUSED, f"it refuses with status {code}")
    if _TLS.search(line):
        return UNTRUSTED
    if _CODEC.search(line):
        return _UNDECODABLE
    if refused := _REFUSED.search(line):
        return Cause(DownReason.UNREACHABLE, f"it cannot be reached ({_UNREACHABLE[refused[1].lower()]})")
    if _TIMED_OUT.search(line):
        return Cause(DownReason.TIMEOUT, "it does not answer (connection timed out)")
    return None
