"""Why FFmpeg could not open a stream, from its typed errors; what these leave open is asked of the camera."""

import errno
import re
import socket
from typing import Final

from av.error import (
    DecoderNotFoundError,
    ExitError,
    FFmpegError,
    HTTPClientError,
    HTTPError,
    HTTPForbiddenError,
    HTTPNotFoundError,
    HTTPUnauthorizedError,
    InvalidDataError,
)

from coatstream.cameras.address import Address
from coatstream.cameras.capture.reader import Cause
from coatstream.cameras.capture.web import UNTRUSTED, refusal
from coatstream.errors import DownReason

_REACH: Final = 2.0  # seconds to find out
_STATUS: Final = re.compile(r"\b([345]\d{2})\b")
_CERTIFICATE: Final = re.compile(r"certificate", re.IGNORECASE)
_ALGORITHM: Final = re.compile(
    r'^www-authenticate:\s*digest\b.*?\balgorithm\s*=\s*"?([\w-]+)', re.IGNORECASE | re.MULTILINE
)
_SPOKEN: Final = ("MD5", "MD5-sess")  # by FFmpeg, in these letters
_STATUS_OF: Final[dict[type[FFmpegError], int]] = {
    HTTPUnauthorizedError: 401,
    HTTPForbiddenError: 403,
    HTTPNotFoundError: 404,
}
_NO_ROUTE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ECONNREFUSED, errno.ENETDOWN)
_NOTHING_READABLE: Final = "what it sends is no video that can be read; check the path in its url"


def unresolved(address: Address) -> Cause | None:
    """Why a network camera's name has no address, or None. Takes as long as the system's resolver does."""
    if address.host is None or address.is_packets:
        return None
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long
        again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        why = "no name server answers" if again else "its name is not known"
        return Cause(DownReason.UNREACHABLE, f"it cannot be reached ({why})")
    return None


def why_not_opened(error: FFmpegError, address: Address, *, took: float, open_timeout: float) -> Cause:
    """What an opening failed with, after `took` seconds. The error's own text is never shown: it holds the URL."""
    log: tuple[int, str, str] | None = error.log  # type: ignore[assignment]  # as PyAV documents it
    last_line = log[2] if log else ""
    if isinstance(error, HTTPError | HTTPClientError):
        return _refused(error, last_line, address)
    # FFmpeg does not always say that it was its time that ran out.
    if isinstance(error, ExitError) or error.errno == errno.ETIMEDOUT or took >= 0.9 * open_timeout:
        return Cause(DownReason.TIMEOUT, f"no answer within {open_timeout:g} s")
    if address.is_secure and _CERTIFICATE.search(last_line):
        return UNTRUSTED
    if error.errno in _NO_ROUTE:
        return Cause(DownReason.UNREACHABLE, f"it cannot be reached ({(error.strerror or 'no answer').lower()})")
    if isinstance(error, DecoderNotFoundError):
        return Cause(
            DownReason.CODEC, "its pictures are of a kind that cannot be decoded here; choose H.264 on the camera"
        )
    if isinstance(error, InvalidDataError):
        return Cause(DownReason.NO_VIDEO, _NOTHING_READABLE)
    return Cause(DownReason.NO_VIDEO, "no stream comes from it; check its path, user and password")


def _refused(error: FFmpegError, last_line: str, address: Address) -> Cause:
    status = _STATUS_OF.get(type(error))
    if status is None:
        found = _STATUS.search(last_line)
        status = int(found[1]) if found else 400
    if status == 401 and address.is_rtsp and (algorithm := _asked_for(address)):
        words = f"it asks for digest authentication with {algorithm!a}, which FFmpeg does not know over RTSP"
        return Cause(DownReason.REFUSED, words)
    return refusal(status)


def _asked_for(address: Address) -> str | None:
    """The digest algorithm that FFmpeg must have failed at, if the camera's challenges name one it does not know."""
    port = address.port or 554
    request = f"DESCRIBE rtsp://{address.host}:{port}/ RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    try:
        with socket.create_connection((address.host, port), timeout=_REACH) as connection:
            connection.sendall(request.encode("ascii", "replace"))
            answer = connection.recv(4096).decode("latin-1")
    except OSError:
        return None
    return next((name[:32] for name in _ALGORITHM.findall(answer) if name not in _SPOKEN), None)
