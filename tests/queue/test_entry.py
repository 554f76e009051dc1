"""What a producer may write, and what is refused with a reason."""

import json
import math

import pytest
from coatstream.errors import BadFrame, DeadReason
from coatstream.queue.entry import FrameEntry, RawPixels, believable, parse, source_of
from hypothesis import given
from hypothesis import strategies as st

ID = "1764000000123-0"
NOW = 1764000000.0


def test_a_picture_is_all_that_a_producer_needs_to_send() -> None:
    entry = parse(ID, {b"image": b"jpeg", b"unknown": b"ignored"})

    assert entry == FrameEntry(ID, "queue", ID, 1_764_000_000.123, None, None, b"jpeg")


def test_every_field_of_the_contract_is_read() -> None:
    fields = {
        b"pixels": b"\0" * 6,
        b"width": b"2",
        b"height": b"1",
        b"format": b"rgb24",
        b"source": "türe".encode(),
        b"frame_id": b"f-1",
        b"captured_at": b"1764000000.5",
        b"expires_at": b"1764000010",
        b"meta": b'{"lane": [1, {"deep": null}]}',
    }

    entry = parse(ID, fields)

    assert entry.picture == RawPixels(b"\0" * 6, 2, 1, "rgb24")
    assert (entry.source, entry.frame_id, entry.captured_at, entry.expires_at) == (
        "türe",
        "f-1",
        1764000000.5,
        1764000010,
    )
    assert entry.meta == '{"lane": [1, {"deep": null}]}'


def test_a_capture_time_of_zero_is_read_as_such_and_not_the_default() -> None:
    assert parse(ID, {b"image": b"x", b"captured_at": b"0"}).captured_at == 0


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        (0.0, False),
        (946_684_799.0, False),
        (946_684_800.0, True),
        (NOW - 1e6, True),
        (NOW, True),
        (NOW + 60, True),
        (NOW + 60.001, False),
        (1.76e12, False),
    ],
)
def test_a_frame_is_of_this_century_and_not_of_the_future(moment: float, holds: bool) -> None:
    assert believable(moment, now=NOW, max_skew=60) is holds


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        (b"captured_at", b"nan", "captured_at"),
        (b"captured_at", b"inf", "captured_at"),
        (b"captured_at", b"1e9", "captured_at"),
        (b"captured_at", b"-5", "captured_at"),
        (b"captured_at", b"yesterday", "captured_at"),
        (b"captured_at", b"1764000000123", "captured_at.*: milliseconds, perhaps"),
        (b"captured_at", b"1764000000123.25", "captured_at.*: milliseconds, perhaps"),
        (b"expires_at", b"1764000000123456", "expires_at.*: microseconds, perhaps"),
        (b"captured_at", b"1764000000123456789", "captured_at.*: nanoseconds, perhaps"),
        (b"expires_at", b"9" * 400, "expires_at"),
        (b"source", b"\xff\xfe", "source"),
        (b"source", b"x" * 129, "source"),
        (b"frame_id", b"x" * 257, "frame_id"),
        (b"meta", b"[1]", "meta"),
        (b"meta", b"{", "meta"),
        (b"meta", b'{"a": NaN}', "meta"),
        (b"meta", b'{"a": "' + b"x" * 4096 + b'"}', "meta"),
        (b"meta", b'{"a":' * 700 + b"1" + b"}" * 700, "meta"),
    ],
)
def test_a_wrong_field_is_invalid_and_the_message_names_it(field: bytes, value: bytes, names: str) -> None:
    with pytest.raises(BadFrame, match=names) as caught:
        parse(ID, {b"image": b"x", field: value})

    assert caught.value.reason is DeadReason.INVALID
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"source": b"door"},
        {b"pixels": b"abc"},
        {b"pixels": b"abc", b"width": b"1"},
        {b"pixels": b"abc", b"width": b"0", b"height": b"1"},
        {b"pixels": b"abc", b"width": b"-1", b"height": b"1"},
        {b"pixels": b"abc", b"width": b"1.0", b"height": b"1"},
        {b"pixels": b"abc", b"width": b"9" * 50, b"height": b"1"},
        {b"pixels": b"abc", b"width": b"1", b"height": b"1", b"format": b"yuv420p"},
    ],
)
def test_a_frame_without_a_usable_picture_is_invalid(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(BadFrame) as caught:
        parse(ID, fields)

    assert caught.value.reason is DeadReason.INVALID


@given(
    st.dictionaries(
        st.sampled_from(
            [
                b"image",
                b"pixels",
                b"width",
                b"height",
                b"format",
                b"source",
                b"frame_id",
                b"captured_at",
                b"expires_at",
                b"meta",
            ]
        ),
        st.one_of(
            st.binary(max_size=300),
            st.text(max_size=40).map(str.encode),
            st.floats().map(lambda x: str(x).encode()),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
            ).map(lambda value: json.dumps(value).encode()),
        ),
    )
)
def test_whatever_a_stranger_writes_is_an_entry_or_a_bad_frame(fields: dict[bytes, bytes]) -> None:
    try:
        entry = parse(ID, fields)
    except BadFrame as bad:
        reason: DeadReason | None = bad.reason
    else:
        reason = None
        assert entry.source == source_of(fields)
        assert 0 < len(entry.source) <= 128
        assert math.isfinite(entry.captured_at)
        assert entry.meta is None or isinstance(json.loads(entry.meta), dict)
    assert reason in (None, DeadReason.INVALID)
