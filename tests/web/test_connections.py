"""Idle, half-open and slow clients cost their own connection, and never the next probe."""

import asyncio
import select
import socket
from contextlib import ExitStack

import httpx
import pytest
from coatstream.settings.model import HttpSettings
from coatstream.web import connections
from coatstream.web.server import link, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

PATIENCE = 60.0
HEAD = b"%s HTTP/1.1\r\nhost: x\r\n"


async def hello(_request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def much(_request: Request) -> Response:
    return PlainTextResponse("x" * (64 << 20))


APP = Starlette(routes=[Route("/", hello), Route("/echo", echo, methods=["POST"]), Route("/much", much)])
ANY_PORT = HttpSettings(port=0)


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes the connection; what it had sent is read and dropped."""
    try:
        async with asyncio.timeout(PATIENCE):
            while await reader.read(1 << 20):
                pass
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nab",
    ],
)
async def test_a_request_that_never_ends_is_given_up(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_WITHIN", 0.1)
    async with serve(APP, ANY_PORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)

        assert await ended(reader)
        writer.close()


async def test_a_second_request_that_never_ends_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_WITHIN", 0.5)
    async with serve(APP, ANY_PORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HT")

        assert await ended(reader)
        writer.close()


async def test_a_client_that_does_not_read_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_WITHIN", 0.1)
    async with serve(APP, ANY_PORT) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await asyncio.to_thread(_is_answered, client)
            await asyncio.sleep(1.0)  # on the server's own loop, whose deadlines come first

            read = await asyncio.to_thread(_drain, client)

    assert read < 64 << 20


async def test_a_client_on_a_slow_line_is_waited_for_while_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the buffers of the kernel take at once is less than a step reads, and each step is longer than the bound."""
    monkeypatch.setattr(connections, "READ_WITHIN", 0.2)
    async with serve(APP, ANY_PORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET /much HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        read = 0
        for _ in range(10):
            await asyncio.sleep(0.1)
            read += len(await reader.readexactly(4 << 20))
        read += len(await reader.read(64 << 20))
        writer.close()

    assert read > 40 << 20


def _is_answered(client: socket.socket) -> bool:
    """Wait for the answer, without reading it."""
    there = select.poll()
    there.register(client, select.POLLIN)
    return bool(there.poll(1000 * PATIENCE))


def _drain(client: socket.socket) -> int:
    client.settimeout(PATIENCE)
    total = 0
    try:
        while chunk := client.recv(1 << 20):
            total += len(chunk)
    except ConnectionResetError:
        pass
    return total


async def test_a_client_that_reads_slowly_but_reads_gets_it_all() -> None:
    async with serve(APP, ANY_PORT) as port, httpx.AsyncClient(timeout=PATIENCE) as http:
        answer = await http.get(f"http://127.0.0.1:{port}/much")

    assert len(answer.content) == 64 << 20


async def test_one_connection_serves_many_requests() -> None:
    async with serve(APP, ANY_PORT) as port, httpx.AsyncClient() as http:
        answers = [
            (await http.post(f"http://127.0.0.1:{port}/echo", content=b"x" * size)).text for size in (0, 9, 99_999)
        ]

    assert answers == ["0", "9", "99999"]


async def test_idle_connections_by_the_hundred_do_not_keep_a_probe_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 8)
    async with serve(APP, ANY_PORT) as port:
        with ExitStack() as idle:
            for _ in range(200):
                idle.enter_context(socket.create_connection(("127.0.0.1", port)))
                await asyncio.sleep(0)
            async with httpx.AsyncClient(timeout=PATIENCE) as http:
                answer = await http.get(f"http://127.0.0.1:{port}/")

    assert answer.text == "hello"


def test_few_descriptors_mean_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 128))

    assert connections.most_connections() == 16


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_all_addresses_means_those_of_both_families(host: str) -> None:
    async with serve(APP, HttpSettings(host="::", port=0)) as port, httpx.AsyncClient() as http:
        answer = await http.get(f"{link(host, port)}/")

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://localhost:80"),
        ("0.0.0.0", "http://localhost:80"),
        ("worker.local", "http://worker.local:80"),
    ],
)
def test_the_link_can_be_opened(host: str, url: str) -> None:
    assert link(host, 80) == url
