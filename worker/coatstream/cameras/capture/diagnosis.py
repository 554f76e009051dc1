"""Why a camera could not be opened, from FFmpeg's words where they are heard, else by asking. Opens no camera."""

import http.client
import socket
import ssl
from urllib.parse import urlsplit

from coatstream.cameras.address import Address, Kind
from coatstream.cameras.capture.decoder_log import UNTRUSTED, Cause, DecoderLog
from coatstream.cameras.capture.stream import STALE
from coatstream.errors import DownReason
from coatstream.settings.model import CameraSettings

_REACH = 2.0  # seconds to find out


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


def why_not_opened(settings: CameraSettings, address: Address, log: DecoderLog, took: float) -> Cause:
    """OpenCV does not say why it failed; a person wants to know where to look."""
    match address.kind:
        case Kind.DEVICE:
            return Cause(DownReason.UNREACHABLE, "there is no such device, or another program holds it")
        case Kind.NETWORK:
            cause, late = log.cause, _timed_out(settings, took)
            # Of a stream in which nothing came FFmpeg says that it does not know its codec.
            if cause is None or cause.reason is DownReason.CODEC:
                cause = late or cause
            return cause or _asked(settings, address, log)
        case _:
            return Cause(DownReason.CODEC, "it is not a video that can be read")


def _timed_out(settings: CameraSettings, took: float) -> Cause | None:
    if took < STALE * settings.open_timeout:
        return None
    return Cause(DownReason.TIMEOUT, f"no answer within {settings.open_timeout:g} s")


def _asked(settings: CameraSettings, address: Address, log: DecoderLog) -> Cause:
    """FFmpeg is silent about a refused password over HTTP, and says nothing at all in the worker's own process."""
    cause = None
    if address.is_http and not log.answered:
        cause = _http(settings, address)
    elif not log.connected:
        cause = _unreachable(address)
    if cause is not None:
        return cause
    if settings.acceleration not in ("none", "any"):
        return no_acceleration(settings)
    if address.is_http:
        return Cause(DownReason.NO_VIDEO, "what it sends is no video that can be read; check the path in its url")
    return Cause(DownReason.NO_VIDEO, "no stream comes from it; check its path, user and password")


def no_acceleration(settings: CameraSettings) -> Cause:
    """The build or the machine cannot do what was asked for."""
    words = f"its pictures cannot be decoded by {settings.acceleration} here; set acceleration to none or any"
    return Cause(DownReason.CODEC, words)


def _unreachable(address: Address) -> Cause | None:
    """Why no connection can be made to a network camera, or None where one can, or where there is none (UDP)."""
    if address.host is None or address.is_packets:
        return None
    try:
        socket.create_connection((address.host, address.port), timeout=_REACH).close()
    except OSError as error:
        why = (error.strerror or "no answer").lower()
        return Cause(DownReason.UNREACHABLE, f"it cannot be reached ({why})")
    return None


def _http(settings: CameraSettings, address: Address) -> Cause | None:
    """What a web server says to somebody without a password, who gets to see no more than the status."""
    host = address.host or ""
    parts = urlsplit(address.location)
    connection = (
        http.client.HTTPSConnection(host, address.port, timeout=_REACH, context=_context(settings))
        if address.is_secure
        else http.client.HTTPConnection(host, address.port, timeout=_REACH)
    )
    try:
        connection.request("GET", f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}")
        status = connection.getresponse().status
    except ssl.SSLCertVerificationError:
        return UNTRUSTED
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "no answer that can be understood"
        return Cause(DownReason.UNREACHABLE, f"it cannot be reached ({why.lower()})")
    finally:
        connection.close()
    if status == 401:
        return Cause(DownReason.AUTH, "user or password are wrong or missing (401)")
    if 300 <= status < 400:
        return Cause(DownReason.REFUSED, f"it redirects to another address ({status}); give that one instead")
    return Cause(DownReason.REFUSED, f"it refuses with status {status}") if status >= 400 else None


def _context(settings: CameraSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(settings.tls_ca) if settings.tls_ca else None)
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
