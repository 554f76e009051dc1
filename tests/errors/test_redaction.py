"""No credential reaches a reader."""

import pytest
from coatstream.errors import redact
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:s3cret@10.0.0.1/stream",
        "rtsp://admin:s3cret@with@ats@10.0.0.1/stream",
        "rtsp://admin:s3cret/with/slashes@10.0.0.1/stream",
        "redis://:s3cret@localhost:6379/0",
        "rediss://user:s3cret@[::1]:6379",
        "http://cam/snap?user=admin&password=s3cret",
        "http://cam/snap?auth_token=s3cret&x=1",
        "HTTP://Admin:s3cret@cam/",
        "cannot open 'rtsp://admin:s3cret@10.0.0.1/stream': refused",
        "http://cam/x?api_key=s3cret",
        "http://cam/x?pwd=s3cret#top",
        "rtsp://cam:554/user=admin_password=s3cret_channel=1_stream=0.sdp?real_stream",
        "rtsp://cam/user=s3cret&password=&channel=1",
        "http://cam/videostream.cgi?loginuse=admin&loginpas=s3cret",
        "http://cam/live?ticket=s3cret&pin=s3cret&hash=s3cret&code=s3cret",
        "http://cam/snap?u=admin&p=s3cret",
        "http://cam/snap?usr=s3cret&pw=s3cret&psw=s3cret",
        "rtsp://cam/admin:s3cret/live",
        "rtsp://cam:554/live/admin:s3cret/ch1?x=1",
        "http://cam/x#token=s3cret",
        "http://cam/x#s3cret",
        "http://cam/x;sessionid=s3cret/y",
        "GET /user=admin_password=s3cret_channel=1 failed",
    ],
)
def test_passwords_and_secret_queries_are_gone(text: str) -> None:
    assert "s3cret" not in redact(text)


def test_what_is_no_secret_stays_readable() -> None:
    for text in (
        "camera door at rtsp://10.0.0.1:554/stream1?channel=2 answered 404",
        "http://[::1]:8080/snap.jpg?quality=80 at 12:30",
        "batch of 3, score p=0.5",
    ):
        assert redact(text) == text


@given(user=st.text("abcXYZ019-_.", min_size=1), password=st.text("abcXYZ019-_.!$&()*+,;=:/@?#%", min_size=6))
def test_any_password_before_the_host_is_gone(user: str, password: str) -> None:
    shown = redact(f"opening rtsp://{user}:{password}@camera.example/stream failed")

    assert shown == "opening rtsp://***@camera.example/stream failed"
