"""A table of requests that the page refuses, as they come in over a socket."""

from urllib.parse import quote

import pytest
from coatstream.broker.connection import Client

from tests.support.pages import BEARER, LOOKING, TOKEN, guarded, page_of, page_settings
from tests.support.servers import ON_ONE_SERVER

pytestmark = ON_ONE_SERVER

JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
CAMERA = '{"name": "x", "url": "rtsp://10.0.0.7/1"}'
LETTER = '{"letters": ["1-1"]}'

Request = tuple[str, str, dict[str, str], str]  # method, path, headers, body

NO_TOKEN: list[tuple[Request, int]] = [
    (("GET", "/", {}, ""), 303),
    (("GET", "/app.js", {}, ""), 303),
    (("GET", "/index.html", {}, ""), 303),
    *((("GET", f"/api/{path}", {}, ""), 401) for path in ("cameras", "events", "labels", "queues", "dead", "ledger")),
    *(
        (("GET", f"/api/{path}", {}, ""), 401)
        for path in ("overview", "session", "live", "openapi.json", "pictures/1-1")
    ),
    (("GET", "/api/labels/live?source=x", {}, ""), 401),
    (("GET", "/api/no-such-thing", {}, ""), 401),
    (("POST", "/api/cameras", JSON, CAMERA), 401),
    (("DELETE", "/api/cameras?name=x", {}, ""), 401),
    (("POST", "/api/dead/replay", JSON, LETTER), 401),
]
WRONG_TOKEN: list[tuple[Request, int]] = [
    (("GET", "/api/cameras", {"authorization": "Bearer wrong"}, ""), 401),
    (("GET", "/api/cameras", {"authorization": "Bearer x"}, ""), 401),
    (("GET", "/api/cameras", {"authorization": f"Basic {TOKEN}"}, ""), 401),
    (("GET", "/api/cameras", {"authorization": TOKEN}, ""), 401),
    (("GET", f"/api/cameras?token={TOKEN}", {}, ""), 401),
    (("GET", "/api/cameras", {"cookie": f"coatstream={TOKEN}"}, ""), 401),
    (("GET", "/api/cameras", {"cookie": "coatstream=change.9999999999.00"}, ""), 401),
    (("GET", "/api/cameras", {"x-forwarded-user": "root", "x-forwarded-for": "127.0.0.1"}, ""), 401),
    (("POST", "/login", FORM, "token=wrong"), 401),
    (("POST", "/login", FORM, ""), 401),
]
MAY_ONLY_LOOK: list[tuple[Request, int]] = [
    (("POST", "/api/cameras", LOOKING | JSON, CAMERA), 403),
    (("DELETE", "/api/cameras?name=x", LOOKING, ""), 403),
    (("POST", "/api/cameras/pause", LOOKING | JSON, '{"name": "x"}'), 403),
    (("POST", "/api/cameras/resume", LOOKING | JSON, '{"name": "x"}'), 403),
    (("POST", "/api/dead/replay", LOOKING | JSON, LETTER), 403),
    (("POST", "/api/dead/drop", LOOKING | JSON, LETTER), 403),
]
FROM_ELSEWHERE: list[tuple[Request, int]] = [
    (("POST", "/api/cameras", BEARER | JSON | {"origin": "https://evil.example"}, CAMERA), 403),
    (("POST", "/api/cameras", BEARER | JSON | {"origin": "null"}, CAMERA), 403),
    (("POST", "/api/cameras", BEARER | JSON | {"origin": "http://127.0.0.1:1"}, CAMERA), 403),
    (("POST", "/api/cameras", BEARER | JSON | {"sec-fetch-site": "cross-site"}, CAMERA), 403),
    (("POST", "/api/cameras", BEARER | JSON | {"sec-fetch-site": "same-site"}, CAMERA), 403),
    (("GET", "/api/cameras", BEARER | {"sec-fetch-site": "cross-site"}, ""), 403),
    (("DELETE", "/api/cameras?name=x", BEARER | {"origin": "https://evil.example"}, ""), 403),
    (("POST", "/login", FORM | {"origin": "https://evil.example"}, f"token={TOKEN}"), 403),
    (("POST", "/logout", FORM | {"origin": "https://evil.example"}, ""), 403),
    (("POST", "/api/cameras", BEARER | {"content-type": "text/plain"}, CAMERA), 415),
    (("POST", "/api/cameras", BEARER | FORM, "name=x&url=rtsp://h/1"), 415),
    (("POST", "/api/dead/drop", BEARER, LETTER), 415),
]
OUT_OF_BOUNDS: list[tuple[Request, int]] = [
    (("POST", "/api/cameras", BEARER | JSON, "x" * 70_000), 413),
    (("GET", "/api/events?label=" + "x" * 9000, BEARER, ""), 414),
    (("GET", "/" + "x" * 2000, BEARER, ""), 414),
    (("PUT", "/api/cameras", BEARER | JSON, CAMERA), 405),
    (("TRACE", "/", BEARER, ""), 404),
    (("OPTIONS", "/api/cameras", BEARER, ""), 405),
    (("GET", "/api/cameras/pause", BEARER, ""), 405),
    (("GET", "/logout", BEARER, ""), 404),
    (("GET", "/api/cameras?limit=501", BEARER, ""), 422),
    (("GET", "/api/events?since=yesterday-ish", BEARER, ""), 422),
    (("POST", "/api/cameras", BEARER | JSON, "{"), 422),
    (("POST", "/api/cameras", BEARER | JSON, "[" * 30_000), 400),
    (("POST", "/api/cameras", BEARER | JSON, '{"name": "x", "url": "rtsp://h/1", "loop": true}'), 422),
    (("POST", "/api/dead/drop", BEARER | JSON, '{"letters": []}'), 422),
]
TRICKS: list[tuple[Request, int]] = [
    *(
        (("GET", path, BEARER, ""), 404)
        for path in (
            *(
                "/../etc/passwd",
                "/..%2f..%2fetc/passwd",
                "/%2e%2e/%2e%2e/etc/passwd",
                "/static/../service.py",
                "//etc/passwd",
            ),
            *(
                "/app.js%00.html",
                "/login.html",
                "/site.py",
                "/.git/config",
                "/api/../metrics",
                "/%5c..%5cwindows",
                "/app.js/",
            ),
            *("/api/pictures/..%2f..%2fetc%2fpasswd", "/api/dead/letters/1-1/picture", "/api/dead/letters/1-1"),
        )
    ),
    (("GET", "/api/pictures/passwd", BEARER, ""), 422),
    (("GET", "/api/dead/letters/*", BEARER, ""), 422),
]
TABLE = [*NO_TOKEN, *WRONG_TOKEN, *MAY_ONLY_LOOK, *FROM_ELSEWHERE, *OUT_OF_BOUNDS, *TRICKS]


async def test_each_request_of_the_table_is_refused_and_changes_nothing(client: Client, redis_url: str) -> None:
    assert len(TABLE) >= 40
    client.xadd("frames:dead", {"image": b"x", "reason": "invalid"}, id="5-5")
    wrong = []

    async with page_of(guarded(redis_url)) as http:
        for (method, path, headers, body), status in TABLE:
            target = {"target": path.encode()}  # as it stands here: httpx would tidy it up
            answer = await http.request(method, "/", headers=headers, content=body or None, extensions=target)
            if answer.status_code != status:
                wrong.append((method, path[:80], headers, status, answer.status_code, answer.text[:200]))
            assert "Traceback" not in answer.text
            assert TOKEN not in answer.text
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]

    assert wrong == []
    assert client.hlen("cameras") == 0
    assert client.xlen("frames:dead") == 1


async def test_wrong_tokens_are_slowed_down_and_then_the_right_one_waits_too(redis_url: str) -> None:
    async with page_of(guarded(redis_url)) as http:
        await http.post("/login", content=f"token={quote(TOKEN)}", headers=FORM)  # whose cookie the client keeps
        for _ in range(5):
            assert (await http.get("/api/session", headers={"authorization": "Bearer wrong"})).status_code == 401

        waiting = await http.get("/api/session", headers=BEARER)
        form = await http.post("/login", content=f"token={quote(TOKEN)}", headers=FORM)
        inside = await http.get("/api/session")

    assert (waiting.status_code, form.status_code, inside.status_code) == (429, 429, 200)
    assert int(waiting.headers["retry-after"]) >= 1


async def test_who_logs_in_gets_a_cookie_that_scripts_and_other_sites_do_not(redis_url: str) -> None:
    async with page_of(guarded(redis_url)) as http:
        answer = await http.post(
            "/login", content=f"token={quote(TOKEN)}", headers=FORM | {"x-forwarded-proto": "https"}
        )
        cookie = answer.headers["set-cookie"]

    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert TOKEN not in cookie
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Secure", "Path=/"))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "10.0.0.7", ""])
async def test_without_a_token_a_name_that_leads_here_from_elsewhere_is_refused(redis_url: str, host: str) -> None:
    """DNS rebinding: a page of evil.example whose name suddenly means 127.0.0.1."""
    async with page_of(page_settings(redis_url)) as http:
        refused = await http.get("/api/cameras", headers={"host": host})
        usual = await http.get("/api/cameras", headers={"host": "localhost:8080"})

    assert (refused.status_code, usual.status_code) == (421, 200)


async def test_a_proxy_logs_people_in_from_its_network_only(redis_url: str) -> None:
    proxy = {"trusted_proxies": ["127.0.0.0/8"], "proxy_header": "X-Forwarded-User"}
    ann = {"x-forwarded-user": "ann", "x-forwarded-host": "cameras.example"}

    async with page_of(page_settings(redis_url, http=proxy)) as http:
        looks = await http.get("/api/session", headers=ann)
        changes = await http.post(
            "/api/cameras", headers=ann | JSON | {"origin": "https://cameras.example"}, content=CAMERA
        )
        nameless = await http.get("/api/session", headers={"x-forwarded-user": ""})
    async with page_of(page_settings(redis_url, http=proxy | {"trusted_proxies": ["10.0.0.0/8"]})) as http:
        stranger = await http.get("/api/session", headers=ann)

    assert (looks.json(), changes.status_code) == ({"role": "look", "login": True}, 403)
    assert (nameless.status_code, stranger.status_code) == (401, 401)


async def test_metrics_and_probes_stay_open_on_the_same_port_or_on_one_of_their_own(redis_url: str) -> None:
    async with page_of(guarded(redis_url)) as http:
        open_paths = [(await http.get(path)).status_code for path in ("/metrics", "/healthz", "/startedz", "/readyz")]
    async with page_of(page_settings(redis_url, http={"token": TOKEN, "probes_port": 0})) as http:
        moved = [(await http.get(path)).status_code for path in ("/metrics", "/healthz")]

    assert open_paths == [200, 200, 503, 503]
    assert moved == [303, 303]


async def test_on_the_network_without_a_token_the_page_is_shut_to_everybody_and_says_how_to_open_it(
    redis_url: str,
) -> None:
    shut = page_settings(redis_url, http={"host": "::"})
    shut_requests: list[Request] = [
        ("GET", "/", {}, ""),
        ("GET", "/login", {}, ""),
        ("GET", "/api/cameras", {"authorization": "Bearer x"}, ""),
        ("POST", "/login", FORM, "token="),
        ("POST", "/api/cameras", JSON, CAMERA),
    ]
    async with page_of(shut) as http:
        answers = [
            await http.request(method, path, headers=headers, content=body)
            for method, path, headers, body in shut_requests
        ]
        probes = [(await http.get(path)).status_code for path in ("/metrics", "/healthz")]

    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert all("http.token_file" in answer.json()["error"] for answer in answers)
    assert probes == [200, 200]
