"""Who may use the page: tokens, sessions, proxies, and how fast one may guess."""

from pathlib import Path

import pytest
from coatstream.errors import ConfigError
from coatstream.settings.model import HttpSettings
from coatstream.web.access import SESSION, Access, TokenTries


def access(**http: object) -> Access:
    return Access.of(HttpSettings.model_validate(http))


def test_on_loopback_nobody_has_to_log_in_and_with_a_token_everybody_has_to() -> None:
    assert not access().needs_login
    assert not access(host="::1").needs_login
    assert access(token="twelve chars").needs_login


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "worker.example"])
def test_a_page_on_the_network_is_shut_unless_the_settings_name_who_may_or_say_in_words_that_all_may(host: str) -> None:
    assert "there is no http.token" in access(host=host).shut
    assert not access().shut

    assert access(host=host, token="twelve chars").needs_login
    assert access(host=host, trusted_proxies=["10.0.0.0/8"], proxy_header="X-User").needs_login
    assert not access(host=host, token="twelve chars").shut
    assert not access(host=host, access="open to anyone").needs_login
    assert not access(host=host, access="open to anyone").shut


@pytest.mark.parametrize(
    ("http", "told"),
    [
        ({"token": "short"}, "12 printable"),
        ({"token": "tabs\tand more of them"}, "printable ASCII"),
        ({"token": "twelve chars", "look_token": "twelve chars"}, "the same"),
        ({"token": "twelve chars", "token_file": "/x"}, "both set"),
        ({"token_file": "/no/such/file"}, "no file"),
        ({"trusted_proxies": ["ten"], "proxy_header": "X-User"}, "no network"),
        ({"trusted_proxies": ["10.0.0.0/8"]}, "need each other"),
        ({"proxy_header": "X-User"}, "need each other"),
    ],
)
def test_settings_of_no_use_are_one_clear_line(http: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as fault:
        access(**http)

    assert "twelve chars" not in str(fault.value)


def test_a_token_comes_from_a_file_without_its_line_break(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("twelve chars\n")

    assert access(token_file=tmp_path / "token").role_of_token("twelve chars") == "change"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe" * 10, b"x" * 5000])
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)

    with pytest.raises(ConfigError, match=r"http\.token"):
        access(token_file=tmp_path / "token")


def test_each_token_has_its_role_and_no_other_text_has_one() -> None:
    both = access(token="may change all", look_token="may only look")

    assert both.role_of_token("may change all") == "change"
    assert both.role_of_token("may only look") == "look"
    assert [both.role_of_token(text) for text in ("", "may change al", "may change all ", "\ud800", "é" * 14)] == [
        None
    ] * 5


def test_a_session_ends_with_its_time_with_the_token_and_with_any_changed_letter() -> None:
    now = [1000.0]
    rules = Access({"change": "may change all"}, needs_login=True, clock=lambda: now[0])
    text = rules.session("look")

    assert rules.role_of_session(text) == "look"
    assert rules.role_of_session(text.replace("look", "change")) is None
    assert rules.role_of_session(text[:-1] + ("0" if text[-1] != "0" else "1")) is None
    assert Access({"change": "another token"}, needs_login=True, clock=lambda: now[0]).role_of_session(text) is None
    assert [rules.role_of_session(odd) for odd in ("", ".", "look..", "look.99999999999.", "é.1.2", "\ud800")] == [
        None
    ] * 6
    now[0] += SESSION + 1
    assert rules.role_of_session(text) is None


def test_a_proxy_is_believed_from_its_own_network_only() -> None:
    rules = access(
        host="0.0.0.0", trusted_proxies=["10.0.0.0/8", "fd00::/8"], proxy_header="X-User", proxy_role="change"
    )

    assert rules.role_of_proxy("10.1.2.3", "ann") == "change"
    assert rules.role_of_proxy("::ffff:10.1.2.3", "ann") == "change"
    assert rules.role_of_proxy("fd00::7", "ann") == "change"
    assert [
        rules.role_of_proxy(*odd) for odd in (("10.1.2.3", " "), ("11.1.2.3", "ann"), ("", "ann"), ("x", "ann"))
    ] == [None] * 4
    assert rules.role_of_session(rules.session("change")) is None  # there is no token that could sign it


def test_guessing_is_slow_from_one_address_and_from_many() -> None:
    now = [0.0]
    throttle = TokenTries(lambda: now[0])

    for _ in range(throttle.BURST):
        assert throttle.wait("a") == 0
        throttle.failed("a")
    assert 0 < throttle.wait("a") <= throttle.EVERY
    assert throttle.wait("b") == 0
    now[0] += throttle.EVERY
    assert throttle.wait("a") == 0

    for number in range(throttle.ALL + 1):
        throttle.failed(str(number))
    assert throttle.wait("quite another") > 0
