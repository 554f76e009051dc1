"""What a camera's URL means, before anything is opened."""

import pytest
from coatstream.cameras.address import Address, Kind, parse, public_url
from coatstream.errors import ConfigError
from coatstream.settings.model import CameraSettings
from pydantic import SecretStr


def address(url: str, user: str | None = None, password: str | None = None) -> Address:
    secret = None if password is None else SecretStr(password)
    return parse(CameraSettings(name="door", url=SecretStr(url), username=user, password=secret))


@pytest.mark.parametrize(
    ("url", "kind", "location"),
    [
        ("rtsp://cam.local/main?channel=1", Kind.NETWORK, "rtsp://cam.local/main?channel=1"),
        ("RTSP://cam.local:8554/main", Kind.NETWORK, "rtsp://cam.local:8554/main"),
        ("https://user:word@cam.local/a.mjpg", Kind.NETWORK, "https://user:word@cam.local/a.mjpg"),
        ("udp://@239.0.0.1:1234", Kind.NETWORK, "udp://@239.0.0.1:1234"),
        ("tcp://127.0.0.1:9000", Kind.NETWORK, "tcp://127.0.0.1:9000"),
        ("0", Kind.DEVICE, "/dev/video0"),
        ("/dev/v4l/by-id/usb-cam", Kind.DEVICE, "/dev/v4l/by-id/usb-cam"),
        ("clips/a b.mp4", Kind.FILE, "clips/a b.mp4"),
        ("./10:30.mp4", Kind.FILE, "./10:30.mp4"),
        ("file:///clips/a%20b.mp4", Kind.FILE, "/clips/a b.mp4"),
        ("file:///pictures/", Kind.FOLDER, "/pictures/"),
        ("pictures/", Kind.FOLDER, "pictures/"),
        ("/", Kind.FOLDER, "/"),
    ],
)
def test_a_url_says_what_is_behind_it(url: str, kind: Kind, location: str) -> None:
    found = address(url)

    assert (found.kind, found.location) == (kind, location)


@pytest.mark.parametrize(
    ("url", "port"), [("rtsp://cam/1", 554), ("rtsps://cam/1", 322), ("http://cam", 80), ("http://cam:81", 81)]
)
def test_a_stream_without_a_port_has_its_protocols(url: str, port: int) -> None:
    assert (address(url).host, address(url).port) == ("cam", port)


def test_a_user_and_password_apart_are_encoded_and_replace_those_in_the_url() -> None:
    found = address("rtsp://old:one@cam:8554/main", user="jo@home", password="a:b/?#%&+ ü")

    assert found.location == "rtsp://jo%40home:a%3Ab%2F%3F%23%25%26%2B%20%C3%BC@cam:8554/main"


def test_an_address_that_is_printed_shows_no_credentials() -> None:
    assert "secret" not in repr(address("rtsp://jo:secret@cam/main"))


@pytest.mark.parametrize("url", ["ftp://jo:secret@cam/a.mp4", "smb://secret@cam/a", "pipe://secret"])
def test_an_unknown_scheme_is_refused_with_the_known_ones_and_no_credentials(url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"door.*begins with (ftp|smb|pipe)://; give rtsp://.*a file's path"
    ) as caught:
        address(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["concat:a.mp4|b.mp4", "subfile,,start,0,end,9,,:a.mp4", "data:x", "pipe:0", "admin:pw@10.0.0.1/main", ""]
)
def test_what_is_no_url_of_a_camera_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is none that is known; give rtsp://") as caught:
        address(url)

    assert "admin" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rtsp:///main", "names no host"),
        ("tcp://cam", "names no port"),
        ("rtsp://jo:se#cret@cam/main", "special characters, write them in username and password"),
        ("rtsp://[::1/main", "cannot be read"),
        ("file://server/clip.mp4", "file on another machine"),
        ("file://[secret", "cannot be read; write file:///path"),
        ("file://\u2100secret/x", "cannot be read; write file:///path"),
    ],
)
def test_a_broken_url_is_refused_with_what_is_wrong_and_no_credentials(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        address(url)

    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("path", ["x" * 5000, "/proc/1/root/clip.mp4", "a\0b"])
def test_no_file_system_is_asked_so_that_none_can_hang_or_refuse(path: str) -> None:
    assert address(path) == Address(Kind.FILE, path)


def test_a_password_of_a_file_replaces_that_of_the_url_and_keeps_its_user() -> None:
    settings = CameraSettings(name="door", url=SecretStr("rtsp://jo%40home:old@cam/main"))

    assert parse(settings, password="new/").location == "rtsp://jo%40home:new%2F@cam/main"


def test_a_password_of_a_file_without_any_user_changes_nothing() -> None:
    settings = CameraSettings(name="door", url=SecretStr("rtsp://cam/main"))

    assert parse(settings, password="new").location == "rtsp://cam/main"


@pytest.mark.parametrize(
    ("url", "rtsp", "hls", "secure"),
    [
        ("rtsps://cam/main", True, False, True),
        ("https://cam/live.M3U8?token=1", False, True, True),
        ("http://cam/a.mjpg?next=b.m3u8", False, False, False),
        ("udp://@:1234", False, False, False),
        ("clip.m3u8", False, False, False),
    ],
)
def test_a_stream_knows_its_protocol(url: str, rtsp: bool, hls: bool, secure: bool) -> None:
    found = address(url)

    assert (found.is_rtsp, found.is_hls, found.is_secure) == (rtsp, hls, secure)


def test_a_user_without_a_password_sends_an_empty_one() -> None:
    assert address("rtsp://admin@cam/1").location == "rtsp://admin:@cam/1"


@pytest.mark.parametrize("url", ["tcp://0.0.0.0:9000?listen=1", "udp://@239.0.0.1:1234?localaddr=10.0.0.1#x"])
def test_streams_without_a_path_take_no_options_for_ffmpeg(url: str) -> None:
    with pytest.raises(ConfigError, match="names options after its port"):
        address(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://h:8554/user=admin_password=tlJwpbo6_channel=1_stream=0.sdp", "rtsp://h:8554"),
        ("http://admin:hunter2@[::1]/video?loginuse=admin&loginpas=888888", "http://[::1]:80"),
        ("udp://@:5000", "udp://:5000"),
        ("/data/clip.mp4", "/data/clip.mp4"),
        ("smb://secret", "unreadable"),
    ],
)
def test_a_list_shows_neither_path_nor_query(url: str, shown: str) -> None:
    assert public_url(CameraSettings(name="door", url=SecretStr(url))) == shown
