"""Dead letters on a real server: read without their pictures, put back once, deleted."""

import pytest

from config.settings import QueueSettings
from tests.settled import NOW, bury
from worker.broker.connection import Client
from worker.broker.dead_letters import PAGE, DeadLetters, Replayed
from worker.errors import RedisUnavailable

Pairs = list[tuple[bytes, bytes]]


def pairs_of(client: Client, stream: str) -> list[Pairs]:
    """The entries' fields in order, doubles and all."""
    replies = client.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, stream)
    return [list(zip(flat[::2], flat[1::2], strict=True)) for _, flat in replies]


@pytest.fixture
def letters(client: Client) -> DeadLetters:
    return DeadLetters(client, QueueSettings())


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

    with pytest.raises(RedisUnavailable, match="frames holds a string"):
        letters.replay([letter])

    assert [left.letter for left in letters.all()] == [letter]


def test_dropped_letters_are_gone_and_the_others_stay(client: Client, letters: DeadLetters) -> None:
    ids = [bury(client, ("n", number)) for number in range(3)]

    assert letters.drop([ids[0], "1-1", ids[2]]) == [True, False, True]

    assert [letter.letter for letter in letters.all()] == [ids[1]]


def test_text_that_is_not_utf8_is_replaced(client: Client, letters: DeadLetters) -> None:
    bury(client, ("source", b"\xff\xfe"), (b"\xffname", "x"), error="bad \udcff".encode("utf-8", "replace").decode())

    [letter] = letters.all()

    assert letter.texts == {"source": "��", "�name": "x"}
