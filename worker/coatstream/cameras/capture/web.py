"""Asks cameras over HTTP: credentials, redirects within the host, certificates, deadlines. Reads no pictures."""

import re
import ssl
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import httpx

from coatstream.cameras.address import Address
from coatstream.cameras.capture.reader import Cause, Trouble
from coatstream.errors import DownReason
from coatstream.settings.model import CameraSettings

_REDIRECTS: Final = 5
_PIECE: Final = 65_536  # bytes
_AUTHORITIES: Final = (  # where systems keep them; FFmpeg looks nowhere by itself
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_NEXT_CHALLENGE: Final = re.compile(r",\s*(?=(?:basic|digest|bearer|ntlm|negotiate)\b)", re.IGNORECASE)
_SPOKEN: Final = frozenset({"MD5", "MD5-SESS", "SHA", "SHA-SESS", "SHA-256", "SHA-256-SESS", "SHA-512", "SHA-512-SESS"})

STATUSES: Final = {
    401: Cause(DownReason.AUTH, "user or password are wrong or missing (401)"),
    403: Cause(DownReason.AUTH, "this user may not see it (403)"),
    404: Cause(DownReason.REFUSED, "there is no such path on it (404); check what follows the host in its url"),
    453: Cause(DownReason.REFUSED, "it has no room for another viewer (453)"),
    461: Cause(
        DownReason.REFUSED, "it does not offer this transport (461); set transport to the other one, tcp or udp"
    ),
    503: Cause(DownReason.REFUSED, "it is busy or has no room for another viewer (503)"),
}
UNTRUSTED: Final = Cause(DownReason.REFUSED, "its certificate is not trusted; set tls_ca or tls_verify: false")


def refusal(status: int) -> Cause:
    """What a status says of a camera."""
    return STATUSES.get(status) or Cause(DownReason.REFUSED, f"it refuses with status {status}")


def authorities(given: Path | None) -> str:
    """The file of those whose certificates are believed. Raises Trouble."""
    if given is not None:
        if not given.is_file():
            raise Trouble(DownReason.REFUSED, f"tls_ca: there is no file {given}")
        return str(given)
    for path in (ssl.get_default_verify_paths().cafile, *_AUTHORITIES):
        if path and Path(path).is_file():
            return path
    words = "this machine has no file of certificate authorities; set tls_ca, or tls_verify: false"
    raise Trouble(DownReason.REFUSED, words)


def _trust(settings: CameraSettings) -> ssl.SSLContext:
    if settings.tls_verify:
        return ssl.create_default_context(cafile=authorities(settings.tls_ca))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # old cameras; who verifies nothing loses nothing by it
    return context


class _Credentials(httpx.Auth):
    """Answers the first challenge that can be answered: digest of several algorithms in any letter case, else basic."""

    def __init__(self, user: str, password: str) -> None:
        self._basic = httpx.BasicAuth(user, password)
        self._digest = httpx.DigestAuth(user, password)  # keeps the last challenge, and answers it at once next time

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        flow = self._digest.auth_flow(request)
        response = yield next(flow)
        if response.status_code != 401:
            return
        challenges = _challenges(response)
        for challenge in challenges:
            if _algorithm(challenge) in _SPOKEN:
                answer = httpx.Response(401, headers={"www-authenticate": challenge}, request=request)
                yield flow.send(answer)
                return
        if any(challenge.lower().startswith("basic") for challenge in challenges):
            yield next(self._basic.auth_flow(request))
        elif unknown := next(filter(None, map(_algorithm, challenges)), None):
            words = f"it asks for digest authentication with {unknown[:32]!a}, which is not known here"
            raise Trouble(DownReason.REFUSED, words)
        elif challenges:
            words = f"it asks for {challenges[0].split()[0][:32]!a} authentication, which is not known here"
            raise Trouble(DownReason.REFUSED, words)


def _challenges(response: httpx.Response) -> list[str]:
    headers = response.headers.get_list("www-authenticate")
    return [challenge for header in headers for challenge in _NEXT_CHALLENGE.split(header) if challenge.strip()]


def _algorithm(challenge: str) -> str | None:
    """Of a digest challenge, in capitals; MD5 where it names none."""
    scheme, _, fields = challenge.partition(" ")
    if scheme.lower() != "digest":
        return None
    named = dict(field.strip().partition("=")[::2] for field in fields.split(","))
    return named.get("algorithm", "MD5").strip().strip('"').upper()


class WebAnswer:
    """A response whose head has come. Its body is read in pieces, once."""

    def __init__(self, response: httpx.Response, read_timeout: float) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.url = response.url
        self._response = response
        self._pieces: Iterator[bytes] | None = None
        response.request.extensions["timeout"]["read"] = read_timeout  # from here on; the head had the opening's time

    def pieces(self) -> Iterator[bytes]:
        """The body. A connection that breaks off ends it. Raises Trouble when nothing comes in time."""
        try:
            yield from self._response.iter_bytes()
        except httpx.TimeoutException:
            timeout = self._response.request.extensions["timeout"]["read"]
            raise Trouble(DownReason.TIMEOUT, f"no picture for {timeout:.1f} s") from None
        except (httpx.HTTPError, httpx.StreamError):
            return

    def close(self) -> None:
        self._response.close()


class WebClient:
    """One camera's HTTP connection."""

    def __init__(self, settings: CameraSettings, address: Address, *, read_timeout: float) -> None:
        """Raises Trouble."""
        self._open_timeout = settings.open_timeout
        self._read_timeout = read_timeout
        url = httpx.URL(address.location)
        user, _, password = url.userinfo.decode("ascii", "replace").partition(":")
        self.url = url.copy_with(userinfo=b"")
        self._client = httpx.Client(
            auth=_Credentials(unquote(user), unquote(password)) if url.userinfo else None,
            verify=_trust(settings) if address.is_secure else True,
            timeout=settings.open_timeout,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # many a camera hangs up without a word
            headers={"user-agent": "coatstream", "accept-encoding": "identity"},
        )

    def get(self, *, since: httpx.Headers | None = None, start: int = 0) -> WebAnswer:
        """Ask for its address; follow redirects on its host. `since`: only what is newer than an answer of that head.

        Raises Trouble where there is no answer, httpx.RemoteProtocolError where it cannot be understood.
        """
        headers = _conditions(since) | ({"range": f"bytes={start}-"} if start else {})
        url = self.url
        for _ in range(_REDIRECTS):
            answer = self._send(httpx.Request("GET", url, headers=headers))
            target = answer.headers.get("location")
            if not 300 <= answer.status < 400 or answer.status == 304 or not target:
                return answer
            answer.close()
            there = url.join(target)
            if not _is_same_place(url, there):
                words = f"it redirects to another address ({answer.status}); give that one instead"
                raise Trouble(DownReason.REFUSED, words)
            url = there.copy_with(userinfo=b"")
        raise Trouble(DownReason.REFUSED, f"it redirects more than {_REDIRECTS} times ({answer.status})")

    def _send(self, request: httpx.Request) -> WebAnswer:
        built = self._client.build_request(request.method, request.url, headers=request.headers)
        try:
            return WebAnswer(self._client.send(built, stream=True), self._read_timeout)
        except httpx.TimeoutException:
            raise Trouble(DownReason.TIMEOUT, f"no answer within {self._open_timeout:g} s") from None
        except httpx.ConnectError as error:
            raise _unreachable(error) from None
        except (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError) as error:
            if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
                raise  # there is an answer
            raise Trouble(DownReason.ENDED, "it closed the connection without an answer") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError, NotImplementedError):
            raise Trouble(DownReason.REFUSED, "its answer cannot be understood") from None

    def close(self) -> None:
        self._client.close()


def _is_same_place(url: httpx.URL, there: httpx.URL) -> bool:
    """Whether a redirect leads to the same server, which has the credentials already: on another port of the host may
    be another program. From http to https of one host counts as the same.
    """
    if there.host != url.host:
        return False
    upgrade = (url.scheme, there.scheme) == ("http", "https") and {url.port, there.port} <= {None, 80, 443}
    return upgrade or (there.scheme == url.scheme and there.port == url.port)


def _conditions(since: httpx.Headers | None) -> dict[str, str]:
    if since is None:
        return {}
    asked = {"if-none-match": since.get("etag"), "if-modified-since": since.get("last-modified")}
    return {name: value for name, value in asked.items() if value is not None}


def _unreachable(error: httpx.ConnectError) -> Trouble:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Trouble(UNTRUSTED.reason, UNTRUSTED.words)
        if isinstance(cause, ssl.SSLError):
            return Trouble(DownReason.REFUSED, "no encrypted connection can be made to it")
        if isinstance(cause, OSError) and cause.errno:
            why = (cause.strerror or "no answer").lower()
            return Trouble(DownReason.UNREACHABLE, f"it cannot be reached ({why})")
        cause = cause.__cause__ or cause.__context__
    return Trouble(DownReason.UNREACHABLE, "it cannot be reached (no answer)")
