"""FFmpeg's words, as FFmpeg 8.1 wrote them, and whatever else a stranger's camera may make it write."""

import pytest
from coatstream.cameras.capture.decoder_log import DecoderLog
from coatstream.errors import DownReason
from hypothesis import given
from hypothesis import strategies as st

CONNECTED = "[tcp @ 0x55] Successfully connected to 10.0.0.7 port 554"


def fed(*lines: str) -> DecoderLog:
    log = DecoderLog()
    log.feed("".join(f"{line}\n" for line in lines).encode())
    return log


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[rtsp @ 0x55] method DESCRIBE failed: 401 (Unauthorized)", DownReason.AUTH),
        ("[http @ 0x55] HTTP error 403 Forbidden", DownReason.AUTH),
        ("[rtsp @ 0x55] method DESCRIBE failed: 404 (Not Found)", DownReason.REFUSED),
        ("[rtsp @ 0x55] method SETUP failed: 453 (Not Enough Bandwidth)", DownReason.REFUSED),
        ("[rtsp @ 0x55] method SETUP failed: 461 (Unsupported Transport)", DownReason.REFUSED),
        ("[http @ 0x55] HTTP error 503 Service Unavailable", DownReason.REFUSED),
        ("[tcp @ 0x55] Connection to tcp://10.0.0.7:554?timeout=0 failed: Connection refused", DownReason.UNREACHABLE),
        ("[tcp @ 0x55] Connection to tcp://10.0.0.7:554 failed: No route to host", DownReason.UNREACHABLE),
        ("[tcp @ 0x55] Failed to resolve hostname cam: Name or service not known", DownReason.UNREACHABLE),
        ("[tcp @ 0x55] Connection to tcp://10.0.0.7:554 failed: Connection timed out", DownReason.TIMEOUT),
        ("[tls @ 0x55] error:1416F086:SSL routines:f:certificate verify failed", DownReason.REFUSED),
        ("[av1 @ 0x55] Your platform doesn't support hardware accelerated AV1 decoding.", DownReason.CODEC),
    ],
)
def test_a_line_tells_why_a_camera_cannot_be_read(line: str, reason: DownReason) -> None:
    cause = fed(line).cause

    assert cause is not None
    assert cause.reason is reason


def test_an_address_that_failed_does_not_matter_once_another_one_is_connected() -> None:
    log = fed("[tcp @ 0x55] Connection to tcp://[::1]:554 failed: Connection refused", CONNECTED)

    assert log.connected
    assert log.cause is None


def test_a_description_of_sound_only_is_no_video() -> None:
    sound = fed("[rtsp @ 0x55] SDP:", "v=0", "m=audio 0 RTP/AVP 0")

    assert sound.cause is not None
    assert sound.cause.reason is DownReason.NO_VIDEO
    assert fed("v=0", "m=audio 0 RTP/AVP 0", "m=video 0 RTP/AVP 96").cause is None


def test_a_new_size_is_a_change_and_the_same_one_again_is_none() -> None:
    log = fed(*["[h264 @ 0x55] Reinit context to 320x240, pix_fmt: yuv420p"] * 2)
    before = log.changed

    log.feed(b"[h264 @ 0x55] Reinit context to 640x480, pix_fmt: yuv420p\n")

    assert (before, log.changed, log.size) == (False, True, (640, 480))


def test_a_second_scaler_is_a_change() -> None:
    line = "[swscaler @ 0x55] deprecated pixel format used, make sure you did set range correctly"

    assert not fed(line).changed
    assert fed(line, line).changed


def test_damage_is_counted_and_taken_once() -> None:
    log = fed(
        "[h264 @ 0x55] error while decoding MB 0 0",
        "[h264 @ 0x55] concealing 300 DC, 300 AC, 300 MV errors in P frame",
        "[rtsp @ 0x55] RTP: missed 7 packets",
        "[h264 @ 0x55] Reinit context to 320x240, pix_fmt: yuv420p",
    )

    assert log.take_damage() == 9
    assert log.take_damage() == 0


def test_what_nobody_has_foreseen_is_no_cause() -> None:
    log = fed("[rtsp @ 0x55] Something new, and 401 of it", "no prefix at all", "")

    assert (log.cause, log.size, log.changed, log.take_damage()) == (None, None, False, 0)


def test_a_line_may_come_in_pieces() -> None:
    log = DecoderLog()
    for byte in b"[rtsp @ 0x55] method DESCRIBE failed: 404 (Not Found)\n":
        log.feed(bytes([byte]))

    assert log.cause is not None


def test_a_line_without_an_end_takes_no_memory() -> None:
    log = DecoderLog()
    for _ in range(100):
        log.feed(b"x" * 65_536)

    assert len(log._rest) <= 4096
    log.feed(b"\n[http @ 0x55] HTTP error 404 Not Found\n")
    assert log.cause is not None


LINES = st.sampled_from(
    [
        "Opening 'http://jo:hunter2@cam/a.ts' for reading",
        "HTTP error 404 http://jo:hunter2@cam/",
        "Connection to tcp://jo:hunter2@cam failed: Connection refused",
        "certificate verify failed for rtsps://jo:hunter2@cam",
        "Reinit context to 99999999999x1",
        "RTP: missed 99999999999999999999 packets",
        "RTP: missed 12 packets",
        "v=0",
        "m=hunter2",
        CONNECTED,
    ]
)


@given(st.lists(st.one_of(LINES.map(str.encode), st.binary(max_size=200))), st.integers(1, 50))
def test_whatever_comes_nothing_is_raised_and_no_password_is_repeated(lines: list[bytes], piece: int) -> None:
    log, text = DecoderLog(), b"\n".join(lines) + b"\n"
    for at in range(0, len(text), piece):
        log.feed(text[at : at + piece])

    assert "hunter2" not in repr((log.cause, log.size, log.changed, log.connected, log.answered))
    assert log.take_damage() >= 0


@given(st.lists(LINES), st.integers(1, 50))
def test_pieces_say_the_same_as_the_whole(lines: list[str], piece: int) -> None:
    whole, pieces, text = fed(*lines), DecoderLog(), "".join(f"{line}\n" for line in lines).encode()
    for at in range(0, len(text), piece):
        pieces.feed(text[at : at + piece])

    assert (pieces.cause, pieces.size, pieces.changed) == (whole.cause, whole.size, whole.changed)
    assert pieces.take_damage() == whole.take_damage()
