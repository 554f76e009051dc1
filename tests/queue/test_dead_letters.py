"""Dead letters on a real server: read without their pictures, put back once, deleted."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.queue.audit import audit
from coatstream.queue.dead.letters import (
    LONGEST_TEXT,
    MOST_TEXT,
    PAGE,
    DeadLetters,
    LetterPicture,
    Replayed,
    parse_letter,
)
from coatstream.settings.model import RedisSettings
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.burials import bury, queue
from tests.support.settled import NOW

Pairs = list[tuple[bytes, bytes]]


def pairs_of(client: Client, stream: str) -> list[Pairs]:
    """The entries' fields in order, doubles and all."""
    replies = client.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, stream)
    return [list(zip(flat[::2], flat[1::2], strict=True)) for _, flat in replies]


def size_of(client: Client, stream: str) -> int:
    """Bytes of all names and values that really lie there."""
    return sum(len(name) + len(value) for pairs in pairs_of(client, stream) for name, value in pairs)


def at_once(redis_url: str, calls: list[Callable[[DeadLetters], None]]) -> None:
    """Each in a thread and with a connection of its own, all starting together."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[DeadLetters], None], client: Client) -> None:
        start.wait(20)
        call(DeadLetters(client, queue()))

    with ExitStack() as stack:
        settings_ = RedisSettings.model_validate({"url": redis_url})
        clients = [stack.enter_context(connect(settings_)) for _ in calls]
        threads = [threading.Thread(target=run, args=pair) for pair in zip(calls, clients, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def letters(client: Client) -> DeadLetters:
    return DeadLetters(client, queue())


def test_a_letter_says_why_its_frame_died(client: Client, letters: DeadLetters) -> None:
    bury(client, ("image", b"\xff" * 5000), ("source", "door"), ("meta", '{"a":1}'))

    [letter] = letters.all()

    assert (letter.reason, letter.error, letter.deliveries, letter.worker) == ("undecodable", "no picture", "1", "me")
    assert letter.died_at == NOW
    assert letter.texts == {"source": "door", "meta": '{"a":1}'}
    assert letter.sizes == {"image": 5000}


def test_pictures_stay_on_the_server_when_letters_are_read(client: Client, letters: DeadLetters) -> None:
    for _ in range(4):
        bury(client, ("image", b"x" * 300_000))
    before = client.info("stats")["total_net_output_bytes"]

    assert len(list(letters.all())) == 4

    assert client.info("stats")["total_net_output_bytes"] - before < 50_000


def test_letters_come_oldest_first_over_several_pages(client: Client, letters: DeadLetters) -> None:
    ids = [bury(client, ("n", number)) for number in range(2 * PAGE + 1)]

    assert [letter.letter for letter in letters.all()] == ids


def test_letters_that_come_while_reading_are_left_for_the_next_time(client: Client, letters: DeadLetters) -> None:
    first = bury(client, ("n", 1))
    reading = letters.all()

    assert next(reading).letter == first
    bury(client, ("n", 2))

    assert list(reading) == []


def test_a_replayed_frame_has_its_own_fields_again_and_no_others(client: Client, letters: DeadLetters) -> None:
    own: Pairs = [(b"image", b"\x00\xff"), (b"source", b"door"), (b"meta", b"{}")]
    letter = bury(client, *own)

    assert letters.replay([letter]) == [Replayed.MOVED]

    assert pairs_of(client, "frames") == [own]
    assert client.xlen("frames:dead") == 0


def test_own_fields_that_are_named_like_ours_survive_a_replay(client: Client, letters: DeadLetters) -> None:
    names = ("reason", "error", "deliveries", "entry_id", "died_at", "worker")
    own: Pairs = [(b"image", b"x"), *((name.encode(), b"mine") for name in names), (b"image", b"again")]
    letter = bury(client, *own)

    [shown] = letters.all()
    letters.replay([letter])

    assert shown.reason == "undecodable"
    assert shown.texts["reason"] == "mine"
    assert pairs_of(client, "frames") == [own]


def test_a_frame_that_died_twice_is_replayed_without_traces_of_either_death(
    client: Client, letters: DeadLetters
) -> None:
    own: Pairs = [(b"image", b"x")]
    first = bury(client, *own)
    letters.replay([first])
    [(entry_id, _)] = client.xrange("frames")
    client.xdel("frames", entry_id)
    second = bury(client, *own)

    letters.replay([second])

    assert pairs_of(client, "frames") == [own]


def test_a_letter_is_replayed_once_whoever_asks_again(client: Client, letters: DeadLetters) -> None:
    letter = bury(client, ("image", b"x"))

    assert letters.replay([letter, letter]) == [Replayed.MOVED, Replayed.ABSENT]
    assert letters.replay([letter]) == [Replayed.ABSENT]

    assert client.xlen("frames") == 1


@pytest.mark.parametrize("nonsense", ["", "x", "-", "+", "1", "1-2-3", "(1-1", "99999999999999999999-0", "1-0 ", "١-0"])
def test_what_is_no_id_of_one_entry_is_absent(client: Client, letters: DeadLetters, nonsense: str) -> None:
    letter = bury(client, ("image", b"x"))

    assert letters.get(nonsense) is None
    assert letters.replay([nonsense]) == [Replayed.ABSENT]
    assert letters.drop([nonsense]) == [False]

    assert [left.letter for left in letters.all()] == [letter]


def test_a_letter_that_somebody_else_wrote_is_shown_and_replayed_whole(client: Client, letters: DeadLetters) -> None:
    letter = client.xadd("frames:dead", {"reason": "lunch", "image": "x"}).decode()

    shown = letters.get(letter)
    letters.replay([letter])

    assert shown is not None
    assert (shown.reason, shown.died_at, shown.texts) == ("", None, {"reason": "lunch"})
    assert pairs_of(client, "frames") == [[(b"reason", b"lunch"), (b"image", b"x")]]


def test_a_letter_with_as_many_fields_as_we_bury_is_replayed(client: Client, letters: DeadLetters) -> None:
    own = [(f"f{number}".encode(), b"x") for number in range(500)]
    letter = bury(client, *own)

    assert letters.replay([letter]) == [Replayed.MOVED]

    assert pairs_of(client, "frames") == [own]


def test_a_letter_with_more_fields_than_lua_can_pass_on_stays(client: Client, letters: DeadLetters) -> None:
    letter = client.xadd("frames:dead", {f"f{number}": "x" for number in range(5000)}).decode()

    assert letters.replay([letter]) == [Replayed.IMPOSSIBLE]

    assert client.xlen("frames") == 0
    assert [left.letter for left in letters.all()] == [letter]


def test_a_letter_whose_frame_was_gone_already_stays(client: Client, letters: DeadLetters) -> None:
    letter = bury(client, ("image", b"x"))
    flat = ["reason", "r", "error", "e", "deliveries", 1, "entry_id", "1-1", "died_at", "1", "worker", "w"]
    empty = client.execute_command("XADD", "frames:dead", "*", *flat).decode()

    assert letters.replay([letter, empty]) == [Replayed.MOVED, Replayed.IMPOSSIBLE]

    assert [left.letter for left in letters.all()] == [empty]


def test_a_full_server_refuses_a_replay_and_loses_nothing(client: Client, letters: DeadLetters) -> None:
    letter = bury(client, ("image", b"x" * 100_000))
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable, match="dead letters cannot be put back"):
            letters.replay([letter])
    finally:
        client.config_set("maxmemory", 0)

    assert [left.letter for left in letters.all()] == [letter]
    assert client.xlen("frames") == 0


def test_letters_can_be_read_and_dropped_on_a_full_server(client: Client, letters: DeadLetters) -> None:
    letter = bury(client, ("image", b"x" * 100_000))
    client.config_set("maxmemory", 1)
    try:
        assert [left.letter for left in letters.all()] == [letter]
        assert letters.drop([letter]) == [True]
    finally:
        client.config_set("maxmemory", 0)


def test_a_frames_key_of_another_type_refuses_a_replay_and_loses_nothing(client: Client, letters: DeadLetters) -> None:
    letter = bury(client, ("image", b"x"))
    client.delete("frames")
    client.set("frames", "not a stream")

    with pytest.raises(RedisRefuses, match="frames holds a string"):
        letters.replay([letter])

    assert [left.letter for left in letters.all()] == [letter]


@pytest.mark.parametrize("act", [DeadLetters.replay, DeadLetters.drop])
def test_books_of_another_type_stop_everything_before_it_begins(
    client: Client, letters: DeadLetters, act: Callable[[DeadLetters, list[str]], object]
) -> None:
    letter = bury(client, ("image", b"x"))
    client.delete("frames:books")
    client.set("frames:books", "no hash")

    with pytest.raises(RedisRefuses, match="frames:books holds a string"):
        act(letters, [letter])

    assert [left.letter for left in letters.all()] == [letter]
    assert client.xlen("frames") == 0


def test_dropped_letters_are_gone_and_the_others_stay(client: Client, letters: DeadLetters) -> None:
    ids = [bury(client, ("n", number)) for number in range(3)]

    assert letters.drop([ids[0], "1-1", ids[2]]) == [True, False, True]

    assert [letter.letter for letter in letters.all()] == [ids[1]]


def test_text_that_is_not_utf8_is_replaced(client: Client, letters: DeadLetters) -> None:
    bury(client, ("source", b"\xff\xfe"), (b"\xffname", "x"), error="bad \udcff".encode("utf-8", "replace").decode())

    [letter] = letters.all()

    assert letter.texts == {"source": "��", "�name": "x"}


def test_which_letters_are_there_is_told_page_by_page(client: Client, letters: DeadLetters) -> None:
    ids = [bury(client, ("n", number)) for number in range(PAGE + 2)]
    letters.drop([ids[3]])

    held = letters.holds([*ids, "1-1", "nonsense"])

    assert held == [number != 3 for number in range(PAGE + 2)] + [False, False]


def test_a_letter_with_heaps_of_text_is_read_within_bounds_and_still_says_why(
    client: Client, letters: DeadLetters
) -> None:
    bury(client, *((f"f{number}", "x" * LONGEST_TEXT) for number in range(200)), ("short", "s"))

    [letter] = letters.all()

    assert sum(map(len, letter.texts.values())) <= MOST_TEXT
    assert len(letter.texts) + len(letter.sizes) == 201
    assert set(letter.sizes.values()) == {LONGEST_TEXT, 1}
    assert (letter.reason, letter.worker) == ("undecodable", "me")


def test_a_picture_is_fetched_as_it_came(client: Client, letters: DeadLetters) -> None:
    encoded = bury(client, ("image", b"\xff\xd8\x00"), ("width", 9))
    raw = bury(client, ("pixels", b"\x00" * 6), ("width", 2), ("height", 1))
    neither = bury(client, ("source", "door"))

    assert letters.picture(encoded) == LetterPicture(b"\xff\xd8\x00", {})
    pixels = letters.picture(raw)
    assert pixels == LetterPicture(b"\x00" * 6, {"width": "2", "height": "1", "format": "bgr24"})
    assert pixels is not None
    assert pixels.raw == "width 2, height 1, format bgr24"
    assert letters.picture(neither) is letters.picture("1-1") is letters.picture("nonsense") is None


def test_what_admission_wrote_is_not_put_back_or_it_would_be_counted_off_twice(
    client: Client, letters: DeadLetters
) -> None:
    letter = bury(client, ("image", b"x"), ("admitted", 1), ("sequence", 7), ("source", "door"), admitted=1)

    letters.replay([letter])

    assert pairs_of(client, "frames") == [[(b"image", b"x"), (b"source", b"door")]]


def test_a_field_named_sequence_of_a_frame_that_nobody_admitted_is_its_own(
    client: Client, letters: DeadLetters
) -> None:
    letter = bury(client, ("image", b"x"), ("sequence", 7))

    letters.replay([letter])

    assert pairs_of(client, "frames") == [[(b"image", b"x"), (b"sequence", b"7")]]


def test_an_admitted_frame_that_was_replayed_and_died_again_is_counted_off_once(
    client: Client, letters: DeadLetters
) -> None:
    client.hset("frames:books", "admitted_bytes", 100)
    client.hset("frames:sources", "door", 2)
    own = (("image", b"x"), ("source", "door"))
    letters.replay([bury(client, *own, ("admitted", 40), ("sequence", 1), admitted=40)])
    [(entry_id, fields)] = client.xrange("frames")
    client.xdel("frames", entry_id)

    bury(client, *fields.items(), admitted=int(fields.get(b"admitted", 0)))

    assert client.hget("frames:books", "admitted_bytes") == b"60"
    assert client.hgetall("frames:sources") == {b"door": b"1"}


def test_the_books_keep_the_bytes_of_the_letters_that_are_left(client: Client, letters: DeadLetters) -> None:
    ids = [bury(client, ("image", b"x" * size)) for size in (10, 2000, 300, 4)]
    assert audit(client, queue()).dead_bytes == size_of(client, "frames:dead") > 2314

    letters.replay([ids[1]])
    letters.drop([ids[0]])

    assert audit(client, queue()).dead_bytes == size_of(client, "frames:dead")
    assert audit(client, queue()).letters == 2


def test_letters_that_the_books_know_nothing_of_take_no_bytes_below_zero(client: Client, letters: DeadLetters) -> None:
    foreign = client.xadd("frames:dead", {"image": b"x" * 5000}).decode()
    strange = client.xadd("frames:dead", {"image": b"x" * 5000}).decode()

    letters.drop([foreign])
    letters.replay([strange])

    assert client.hget("frames:books", "dead_bytes") == b"0"


def test_two_who_replay_and_one_who_drops_at_the_same_time_share_the_letters_out(
    client: Client, redis_url: str
) -> None:
    ids = [bury(client, ("image", f"{number}")) for number in range(120)]
    moved: list[str] = []
    dropped: list[str] = []

    def replay(letters: DeadLetters) -> None:
        for at in range(0, len(ids), 5):
            page = ids[at : at + 5]
            moved.extend(i for i, done in zip(page, letters.replay(page), strict=True) if done is Replayed.MOVED)

    def drop(letters: DeadLetters) -> None:
        for letter in reversed(ids):
            dropped.extend([letter] if letters.drop([letter]) == [True] else [])

    at_once(redis_url, [replay, replay, drop])

    assert sorted(moved + dropped) == sorted(ids)
    replayed = sorted(int(fields[b"image"]) for _, fields in client.xrange("frames"))
    assert replayed == sorted(ids.index(letter) for letter in moved)
    assert client.xlen("frames:dead") == 0
    assert audit(client, queue()).balanced
    assert client.hget("frames:books", "dead_bytes") == b"0"


names = st.binary(max_size=12) | st.sampled_from([b"image", b"pixels", b"reason", b"error", b"worker", b"admitted"])
own_fields = st.lists(st.tuples(names, st.binary(max_size=40)), max_size=12)
ANY_CLIENT = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHY = [
    *((b"reason", b"invalid"), (b"error", b"e"), (b"deliveries", b"2"), (b"entry_id", b"1-2")),
    *((b"died_at", b"3.5"), (b"worker", b"w")),
]


def triples(pairs: Pairs) -> Iterator[bytes | int]:
    for name, value in pairs:
        yield from (name, len(value), value)


@given(own_fields)
def test_whatever_a_frame_holds_its_letter_says_why_it_died(own: Pairs) -> None:
    letter = parse_letter("frames", "1-1", list(triples(own + WHY)))

    assert (letter.reason, letter.error, letter.deliveries, letter.worker) == ("invalid", "e", "2", "w")
    assert (letter.entry_id, letter.died_at) == ("1-2", 3.5)
    assert {*letter.texts, *letter.sizes} == {name.decode("utf-8", "replace") for name, _ in own}
    assert not {"image", "pixels"} & letter.texts.keys()


@given(own_fields, st.lists(st.sampled_from(WHY), max_size=7))
@example([(b"worker", b"w")], WHY[1:])
def test_a_letter_that_is_none_of_ours_is_parsed_all_the_same(own: Pairs, more: Pairs) -> None:
    flat = own + more
    ours = [name for name, _ in flat[-6:]] == [name for name, _ in WHY]

    letter = parse_letter("frames", "1-1", list(triples(flat)))

    assert bool(letter.entry_id) == ours
    assert ours or {*letter.texts, *letter.sizes} == {name.decode("utf-8", "replace") for name, _ in flat}


@ANY_CLIENT
@given(own_fields.filter(bool))
def test_whatever_a_frame_holds_comes_back_from_a_replay_as_it_was(
    client: Client, letters: DeadLetters, own: Pairs
) -> None:
    client.delete("frames", "frames:dead", "frames:books")
    letter = bury(client, *own)
    kept = own if b"admitted" not in dict(own) else [pair for pair in own if pair[0] not in (b"admitted", b"sequence")]

    assert letters.replay([letter]) == [Replayed.MOVED if kept else Replayed.IMPOSSIBLE]

    assert pairs_of(client, "frames") == ([kept] if kept else [])
    assert audit(client, queue()).dead_bytes == size_of(client, "frames:dead")
