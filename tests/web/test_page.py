"""The page in a real browser: what a person sees, does with the keyboard, and must never see run."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.resources import files
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from coatstream.broker.connection import Client
from coatstream.results.pictures import picture_id
from playwright.sync_api import Browser, Page, expect

from tests.commands.test_cameras import lease
from tests.support.browsers import Complaints, chromium
from tests.support.load import slack
from tests.support.pages import LOOK_TOKEN, TOKEN, guarded, page_in_thread, page_settings
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import PATIENCE, run_worker
from tests.web.test_api import ODD, event, label, report

pytestmark = [ON_ONE_SERVER, pytest.mark.slow]

CLIP = files("coatstream") / "assets" / "cockatoo_360p.mp4"
PHOTO = (files("coatstream") / "assets" / "coffee.png").read_bytes()
VIEWS = ("#/", "#/search", "#/queue", "#/dead", "#/camera/door")
REPLAYED = re.compile(r"^Replayed \d")
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def furnished(client: Client, redis_url: str) -> Iterator[str]:
    """The address of a page that has something to show in each view."""
    furnish(client)
    with page_in_thread(page_settings(redis_url)) as address:
        yield address


def furnish(client: Client, name: str = "door", text: str = "egret") -> None:
    client.hset("cameras", name, '{"url": "rtsp://h/1"}')
    client.incr("cameras:version")
    began = time.time() - 90
    client.hset("tags:" + name, text, json.dumps({"score": 0.5, "started_at": began, "first_frame_id": "f"}))
    client.hset("labels:latest", name, json.dumps(label(name, text)))
    client.hset("labels:latest", f"{name} in the queue", json.dumps(label(f"{name} in the queue", text)))
    client.hset("cameras:reports", "host-1-ab", report().model_copy(update={"at": time.time() + 5}).model_dump_json())
    picture = picture_id("frame", 1_700_000_000.0)
    client.set(f"picture:{picture}", jpeg())
    event(client, "tag.started", name, tag=text, score=0.5, started_at=began, picture=picture)
    event(client, "camera.state", name, state="down", reason="timeout", message=f"silence {text}")
    why = {"error": text, "deliveries": "1", "entry_id": "1-1", "died_at": "1700000000.5", "worker": text}
    client.xadd("frames:dead", {"image": PHOTO, "source": name, "frame_id": text, "reason": "model_error", **why})


def jpeg() -> bytes:
    import cv2
    import numpy as np

    done, data = cv2.imencode(".jpg", np.zeros((90, 160, 3), np.uint8))
    assert done
    return data.tobytes()


def seconds_until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)
    return time.monotonic() - began


# ---- for every person


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(browser: Browser, furnished: str, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    found = {}
    for view in VIEWS:
        page.goto(f"{furnished}/{view}")
        page.wait_for_selector("main h1")
        page.wait_for_timeout(1500)
        if view == "#/":
            page.get_by_role("button", name="Add a camera").click()
            found[f"{view} dialog"] = serious(page)
            page.keyboard.press("Escape")
        found[view] = serious(page)
    context.close()

    assert {view: rules for view, rules in found.items() if rules} == {}


def serious(page: Page) -> list[str]:
    result = Axe().run(page)
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in result.response["violations"]
        if one["impact"] in SERIOUS
    ]


def test_the_login_form_and_the_start_page_are_accessible_too(page: Page, redis_url: str) -> None:
    with page_in_thread(guarded(redis_url)) as address:
        page.goto(address)
        form = serious(page)
    with page_in_thread(page_settings(redis_url)) as address:
        page.goto(address)
        expect(page.get_by_text("coatstream cameras add")).to_be_visible()
        start = serious(page)

    assert (form, start) == ([], [])


def test_nothing_scrolls_sideways_at_320_pixels(browser: Browser, furnished: str, client: Client) -> None:
    furnish(client, "x" * 100, "y" * 120)
    context = browser.new_context(viewport={"width": 320, "height": 640})
    page = context.new_page()
    widths = {}
    for view in (*VIEWS, "#/camera/" + "x" * 100):
        page.goto(f"{furnished}/{view}")
        page.wait_for_selector("main h1")
        page.wait_for_timeout(1000)
        widths[view[:20]] = page.evaluate("document.documentElement.scrollWidth")
    context.close()

    assert set(widths.values()) == {320}


def test_all_of_it_works_by_keyboard(page: Page, furnished: str, client: Client) -> None:
    page.goto(furnished)
    expect(page.locator(".tile h2 a")).to_be_visible()

    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    tab_to(page, "Dead letters")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Dead letters")).to_be_visible()
    expect(page.get_by_role("button", name="Replay").first).to_be_visible()
    tab_to(page, "Replay")
    page.keyboard.press("Enter")
    expect(page.get_by_text(REPLAYED)).to_be_visible()
    assert client.xlen("frames:dead") == 0
    page.goto(f"{furnished}/#/camera/door")
    expect(page.get_by_role("slider")).to_be_visible()
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    expect(page.locator(".moment")).to_contain_text("no tag")
    page.keyboard.press("End")
    expect(page.locator(".moment")).to_contain_text("egret")


def tab_to(page: Page, text: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if text in page.evaluate("document.activeElement.textContent"):
            return
    raise AssertionError(f"{text} cannot be reached by Tab")


def test_text_of_strangers_is_never_markup_and_never_runs(page: Page, furnished: str, client: Client) -> None:
    furnish(client, ODD, ODD)
    complaints = Complaints(page)
    ran: list[str] = []
    page.on("dialog", lambda dialog: ran.append(dialog.message))
    for view in (*VIEWS, "#/camera/" + "%3Cscript%3Ealert(1)%3C%2Fscript%3E"):
        page.goto(f"{furnished}/{view}")
        page.wait_for_selector("main h1")
        page.wait_for_timeout(1500)
        assert "\u202e" not in page.inner_text("body")
        assert "\x1b" not in page.inner_text("body")
        assert page.locator("main script, a[href^='javascript:']").count() == 0
    page.goto(f"{furnished}/#/queue")
    expect(page.locator("main")).to_contain_text("<script>alert(1)</script>")

    assert ran == []
    assert complaints.lines == []


# ---- with workers


def test_the_first_tile_comes_within_a_second_and_its_labels_and_picture_move(
    page: Page, client: Client, redis_url: str
) -> None:
    with run_worker(redis_url, model__engine="noop", cameras=json.dumps([camera("clip")])) as worker:
        seconds_until(lambda: bool(client.hexists("labels:latest", "clip")))
        address = f"http://127.0.0.1:{worker.port}"
        page.goto(address)  # the browser's own first start is no fact of the page
        page.close()
        page = page.context.new_page()

        began = time.monotonic()
        page.goto(address)
        page.wait_for_selector(".tile[data-state=live]")
        first_tile = time.monotonic() - began
        expect(page.locator(".preview:not(.empty)")).to_be_visible()
        facts = page.locator(".tile .facts").inner_text()
        seconds_until(lambda: page.locator(".tile .facts").inner_text() != facts)

    print(f"first tile after {first_tile:.2f} s")
    assert first_tile < 1.0 + machine_is_busy()


def test_a_camera_that_is_lost_is_shown_so_within_two_seconds(page: Page, client: Client, redis_url: str) -> None:
    with page_in_thread(page_settings(redis_url)) as address:
        furnish(client)
        client.hset("cameras:states", "door", '{"state": "live", "since": 1700000000.0, "worker": "w"}')
        lease(client, "door")
        page.goto(address)
        page.wait_for_selector(".tile[data-state=live]")

        client.hset(
            "cameras:states", "door", '{"state": "down", "reason": "timeout", "since": 1700000000.0, "worker": "w"}'
        )
        seconds = seconds_until(lambda: page.locator(".tile[data-state=down]").count() == 1)

    print(f"said after {seconds:.2f} s")
    assert seconds < 2.0 + machine_is_busy()


def test_a_lost_worker_is_said_within_two_seconds_and_heals(page: Page, client: Client, redis_url: str) -> None:
    furnish(client)
    with ExitStack() as stack:
        address = stack.enter_context(page_in_thread(page_settings(redis_url)))
        page.goto(address)
        page.wait_for_selector(".tile")
        stack.close()
        seconds = seconds_until(lambda: page.locator("#lost").is_visible())
        port = int(address.rpartition(":")[2])
        stack.enter_context(page_in_thread(page_settings(redis_url, http={"port": port})))
        expect(page.locator("#lost")).to_be_hidden()

    assert seconds < 2.0 + machine_is_busy()


def test_two_workers_share_cameras_and_when_one_is_killed_all_are_still_shown(
    page: Page, client: Client, redis_url: str
) -> None:
    cameras = json.dumps([camera(f"clip-{number}") for number in range(4)])
    start = partial(run_worker, redis_url, model__engine="noop", cameras=cameras, fleet__lease=4)
    with start() as one, start() as two:
        page.goto(f"http://127.0.0.1:{one.port}")
        expect(page.locator(".tile[data-state=live]")).to_have_count(4, timeout=60_000)
        expect(page.locator("#strip")).to_contain_text("Replicas2")
        two.process.kill()
        expect(page.locator("#strip")).to_contain_text("Replicas1", timeout=60_000)
        expect(page.locator(".tile[data-state=live]")).to_have_count(4, timeout=60_000)


def camera(name: str) -> dict[str, object]:
    return {"name": name, "url": str(CLIP), "realtime": True, "loop": True}


def machine_is_busy() -> float:
    """Seconds that are allowed besides: Chromium shares two cores with all that it looks at."""
    return 1.0 + slack()


# ---- what a person does


def test_a_person_logs_in_replays_a_dead_letter_adds_and_removes_a_camera(
    page: Page, client: Client, redis_url: str
) -> None:
    furnish(client)
    complaints = Complaints(page)
    with page_in_thread(guarded(redis_url)) as address:
        page.goto(address)
        page.get_by_label("Token").fill("wrong wrong wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("wrong")
        complaints.lines.clear()  # of the refused login
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator(".tile")).to_have_count(1)

        page.get_by_role("link", name="Dead letters").click()
        page.get_by_role("button", name="Replay").click()
        expect(page.get_by_text(REPLAYED)).to_be_visible()
        page.get_by_role("link", name="Cameras").click()
        page.get_by_role("button", name="Add a camera").click()
        page.get_by_label("Name").fill("yard")
        page.get_by_label("Address").fill("rtsp://10.0.0.8/1")
        page.get_by_label("Password").fill("hunter2")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".tile")).to_have_count(2)
        added = client.hexists("cameras", "yard")
        page.get_by_role("link", name="yard").click()
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.get_by_text("removed yard")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()

    assert added
    assert not client.hexists("cameras", "yard")
    assert (client.xlen("frames:dead"), client.xlen("frames")) == (0, 1)
    assert complaints.lines == []


def test_who_may_only_look_sees_no_button_that_changes_things(page: Page, client: Client, redis_url: str) -> None:
    furnish(client)
    with page_in_thread(guarded(redis_url)) as address:
        page.goto(address)
        page.get_by_label("Token").fill(LOOK_TOKEN)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator(".tile")).to_have_count(1)
        buttons = []
        for view in VIEWS:
            page.goto(f"{address}/{view}")
            page.wait_for_timeout(800)
            buttons += page.get_by_role("button").all_inner_texts()

    assert set(buttons) <= {"Log out", "Search", "Show", "More", "Older ones"}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("egret, last hour", 1),
        ("EGR, door, last 2 hours", 1),
        ("dog, last hour", 0),
        ("door, last 10 minutes", 2),
        ("1d", 2),
    ],
)
def test_search_understands_a_label_a_camera_and_a_time(page: Page, furnished: str, words: str, shown: int) -> None:
    page.goto(furnished)
    expect(page.locator(".tile")).to_have_count(1)
    page.get_by_role("link", name="Search").click()
    page.get_by_label("What, and when").fill(words)
    page.get_by_role("button", name="Search").click()

    expect(page.get_by_text("events, newest first" if shown else "Nothing like that")).to_be_visible()
    expect(page.locator(".card")).to_have_count(shown)


def test_a_camera_that_is_removed_while_it_is_watched_leaves_nothing_stale(
    page: Page, client: Client, redis_url: str
) -> None:
    with page_in_thread(page_settings(redis_url)) as address:
        furnish(client)
        page.goto(f"{address}/#/camera/door")
        expect(page.get_by_role("heading", name="Tags now")).to_be_visible()

        client.hdel("cameras", "door")
        client.incr("cameras:version")

        expect(page.get_by_text("There is no camera of this name any more.")).to_be_visible()
        for heading in ("Tags now", "Newest labels"):
            expect(page.get_by_role("heading", name=heading)).to_be_hidden()
        expect(page.locator(".detail .preview")).to_be_hidden()


def test_a_camera_that_comes_takes_no_focus_from_another(page: Page, client: Client, redis_url: str) -> None:
    with page_in_thread(page_settings(redis_url)) as address:
        furnish(client)
        page.goto(address)
        link = page.get_by_role("link", name="door")
        link.focus()

        furnish(client, "attic")
        furnish(client, "yard")

        expect(page.locator(".tile")).to_have_count(3)
        expect(link).to_be_focused()
        assert page.locator(".tile h2").all_inner_texts() == ["attic", "door", "yard"]


def test_tags_of_regions_have_their_score_of_now_and_labels_stand_under_their_region(
    page: Page, client: Client, redis_url: str
) -> None:
    furnish(client)
    regions = {"<b>gate": [{"index": 1, "wnid": None, "label": "egret", "score": 0.875}]}
    client.hset("labels:latest", "door", json.dumps(label("door", "egret", regions=regions)))
    client.delete("tags:door")
    began = json.dumps({"score": 0.5, "started_at": time.time() - 90, "first_frame_id": "f"})
    client.hset(
        "tags:door", mapping={"<b>gate/egret": began, **{f"<b>gate/bird {number}": began for number in range(9)}}
    )
    with page_in_thread(page_settings(redis_url)) as address:
        page.goto(address)
        expect(page.locator(".tile .tags li").first).to_contain_text("88 %")
        expect(page.locator(".tile .tags")).to_contain_text("and 4 more")
        page.goto(f"{address}/#/camera/door")

        expect(page.locator(".tags li")).to_have_count(10)
        expect(page.locator(".labels li")).to_have_text(["<b>gate", "egret88 %"])


def test_the_day_of_a_camera_has_tags_that_began_before_it_and_ends_those_whose_worker_was_killed(
    page: Page, client: Client, redis_url: str
) -> None:
    now = time.time()
    client.hset("cameras", "door", '{"url": "rtsp://h/1"}')
    client.incr("cameras:version")
    began = json.dumps({"score": 0.5, "started_at": now - 200_000, "first_frame_id": "f"})
    client.hset("tags:door", "old egret", began)
    event(client, "tag.started", "door", now - 3000, tag="lost dog", score=0.5, started_at=now - 3000)
    event(client, "camera.state", "door", now - 2900, state="connecting", reason=None, message="")
    with page_in_thread(page_settings(redis_url)) as address:
        page.goto(f"{address}/#/camera/door")

        expect(page.locator(".line .what")).to_have_text(["old egret", "lost dog"])
        expect(page.locator(".moment")).to_have_text("now: old egret")
        expect(page.locator(".line canvas").nth(1)).to_have_attribute("aria-label", "1 times, 2 min in all")


def test_the_day_goes_on_while_it_is_watched(page: Page, client: Client, redis_url: str) -> None:
    with page_in_thread(page_settings(redis_url)) as address:
        furnish(client)
        page.goto(f"{address}/#/camera/door")
        expect(page.locator(".line")).to_have_count(1)
        page.get_by_text("The same as a table").click()
        rows = page.locator(".timeline tbody tr")
        expect(rows).to_have_count(2)

        client.hdel("tags:door", "egret")
        event(
            client, "tag.ended", "door", tag="egret", started_at=time.time() - 60, ended_at=time.time(), duration=60.0
        )

        expect(rows).to_have_count(3)
        expect(page.locator(".moment")).to_have_text("now: no tag")


def test_sources_of_the_queue_are_found_behind_a_hundred_cameras(page: Page, client: Client, redis_url: str) -> None:
    names = [f"cam-{number:03}" for number in range(100)]
    client.hset("cameras", mapping=dict.fromkeys(names, '{"url": "rtsp://h/1"}'))
    client.incr("cameras:version")
    client.hset("labels:latest", mapping={name: json.dumps(label(name)) for name in [*names, "photos"]})
    with page_in_thread(page_settings(redis_url)) as address:
        page.goto(f"{address}/#/queue")
        expect(page.locator(".tile h2")).to_have_text(["photos"])

        page.get_by_label("Only sources").type("nothing like it", delay=10)

        expect(page.get_by_text("No source has this in its name.")).to_be_visible()


@pytest.mark.parametrize("width", [320, 1280])
def test_no_card_is_wider_than_its_place(browser: Browser, furnished: str, client: Client, width: int) -> None:
    furnish(client, "x" * 128, "y" * 120)
    context = browser.new_context(viewport={"width": width, "height": 640})
    page = context.new_page()
    beyond = {}
    for view in ("#/search", "#/dead"):
        page.goto(f"{furnished}/{view}")
        expect(page.locator(".card").first).to_be_visible()
        wide = (
            "[...document.querySelectorAll('.card')].filter((card) => card.scrollWidth > card.clientWidth + 1).length"
        )
        beyond[view] = page.evaluate(wide)
    context.close()

    assert beyond == {"#/search": 0, "#/dead": 0}


def test_dead_letters_go_on_behind_a_page_that_is_done_with(page: Page, client: Client, redis_url: str) -> None:
    for number in range(22):
        fields = {"source": f"s{number}", "frame_id": str(number), "reason": "invalid", "error": "e", "deliveries": "1"}
        client.xadd("frames:dead", fields | {"entry_id": "1-1", "died_at": "1700000000.5", "worker": "w"})
    with page_in_thread(page_settings(redis_url)) as address:
        page.goto(f"{address}/#/dead")
        for left in range(20, 0, -1):
            expect(page.locator(".card")).to_have_count(left)
            page.get_by_role("button", name="Drop").first.click()
            page.get_by_role("dialog").get_by_role("button", name="Drop").click()
            expect(page.get_by_role("dialog")).to_have_count(0)

        expect(page.locator(".card h2")).to_have_text(["s20", "s21"])
        page.get_by_label("Source").fill("nobody")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_text("No dead letter like that.")).to_be_visible()


def test_a_role_that_is_not_known_at_first_is_asked_for_again(page: Page, client: Client, redis_url: str) -> None:
    furnish(client)
    with page_in_thread(page_settings(redis_url)) as address:
        asked: list[str] = []

        def answer(route: Any) -> None:
            asked.append(route.request.url)
            route.abort() if len(asked) == 1 else route.continue_()

        page.route("**/api/session", answer)
        page.goto(address)

        expect(page.get_by_role("button", name="Add a camera")).to_be_visible()
        assert len(asked) == 2


def test_why_a_camera_cannot_be_added_is_in_sight_on_a_phone(browser: Browser, furnished: str) -> None:
    context = browser.new_context(viewport={"width": 320, "height": 500})
    page = context.new_page()
    page.goto(furnished)
    page.get_by_role("button", name="Add a camera").click()
    page.get_by_label("Name").fill("yard")
    page.get_by_label("Address").fill("javascript:alert(1)")
    page.get_by_label("Address").press("Enter")

    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_in_viewport(ratio=0.5)
    context.close()
