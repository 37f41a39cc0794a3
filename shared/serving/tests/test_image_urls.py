"""URLs are fetched where it is allowed, from public addresses only, however a private one is dressed up."""

import asyncio
import contextlib
import gzip
import ipaddress
from urllib.parse import quote

import pytest

from fovea.errors import InvalidOption, TooLarge
from shared.serving.http.url_images import Fetcher, is_public
from shared.serving.tests.toys import PNG
from tests.harness.scripted import scripted


def anywhere(_):
    return True


@contextlib.asynccontextmanager
async def server(answers):
    """A small web server; `answers` maps a path to raw bytes of a whole HTTP answer, or to None for silence."""
    seen, done = [], asyncio.Event()

    async def serve(reader, writer):
        done.clear()
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        answer = answers[head.split()[1]]
        with contextlib.suppress(ConnectionError):
            if answer is None:
                await reader.read()  # until the caller goes away
            else:
                writer.write(answer)
                await writer.drain()
        done.set()

    async with scripted(serve) as url:
        yield url, seen
        await done.wait()


def ok(body, length=None):
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def squeezed(body):
    """An answer whose body is compressed twice: 64 kB on the wire could be 64 GB here."""
    body = gzip.compress(gzip.compress(body))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def moved(to):
    return f"HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n".encode()


PUBLIC = ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.9", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:0a00:0001::", *PUBLIC,
    ],
)  # fmt: skip
def test_only_public_addresses_are_public_in_any_dress(address):
    assert is_public(ipaddress.ip_address(address)) is (address in PUBLIC)


OF_OTHER_KINDS = ("ftp://example.org/a", "http://user:pass@8.8.8.8/a", "http:///a", "https://")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a", "http://localhost/a", "http://2130706433/a", "http://0x7f.1/a", "http://[::1]/a",
        "http://[::ffff:127.0.0.1]/a", "https://169.254.169.254/latest/meta-data", *OF_OTHER_KINDS,
    ],
)  # fmt: skip
async def test_private_host_in_any_spelling_and_url_of_another_kind_is_refused_without_its_address(url):
    with pytest.raises(InvalidOption, match="http or https" if url in OF_OTHER_KINDS else "not public|no host"):
        await Fetcher(1000).fetch(url)


async def test_file_is_fetched_under_its_own_host_name():
    async with server({"/a?b=c": ok(PNG)}) as (url, seen):
        assert await Fetcher(1000, allowed=anywhere).fetch(f"{url}/a?b=c") == PNG
    assert f"host: {url.removeprefix('http://')}".lower() in seen[0].lower()


async def test_redirects_are_followed_and_each_is_checked():
    async with server({"/a": moved("/b"), "/b": ok(PNG), "/loop": moved("/loop")}) as (url, seen):
        assert await Fetcher(1000, allowed=anywhere).fetch(f"{url}/a") == PNG
        with pytest.raises(InvalidOption, match="redirects more than 4"):
            await Fetcher(1000, allowed=anywhere).fetch(f"{url}/loop")
        port = int(url.rpartition(":")[2])
        asked = []

        def only_first(address):
            asked.append(address)
            return len(asked) == 1

        with pytest.raises(InvalidOption, match="not public"):
            await Fetcher(1000, allowed=only_first).fetch(f"http://127.0.0.1:{port}/a")
    assert sum("GET /b" in head for head in seen) == 1


async def test_what_a_server_compressed_is_not_inflated():
    async with server({"/a": squeezed(bytes(5000))}) as (url, seen):
        assert len(await Fetcher(1000, allowed=anywhere).fetch(f"{url}/a")) < 1000
    assert "accept-encoding: identity" in seen[0].lower()


@pytest.mark.parametrize("answer", [ok(b"x" * 1001), ok(b"", length=10**9), b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000])
async def test_file_over_the_limit_is_refused_while_it_arrives(answer):
    async with server({"/a": answer}) as (url, _):
        with pytest.raises(TooLarge, match="more than 1,000 bytes"):
            await Fetcher(1000, allowed=anywhere).fetch(f"{url}/a")


async def test_what_is_wrong_with_the_other_side_is_said():
    gone = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    async with server({"/gone": gone, "/slow": None, "/odd": b"nonsense\r\n\r\n"}) as (url, _):
        with pytest.raises(InvalidOption, match="answered 404"):
            await Fetcher(1000, allowed=anywhere).fetch(f"{url}/gone")
        with pytest.raises(InvalidOption, match=r"within 0\.2 s"):
            await Fetcher(1000, 0.2, anywhere).fetch(f"{url}/slow")
        with pytest.raises(InvalidOption, match="could not be read"):
            await Fetcher(1000, allowed=anywhere).fetch(f"{url}/odd")


@pytest.fixture
async def client(start_client):
    return await start_client(allow_image_urls=True, max_body_bytes=100_000)


@pytest.fixture
def open_doors(monkeypatch):
    monkeypatch.setattr("shared.serving.http.task_routes.Fetcher", lambda limit: Fetcher(limit, allowed=anywhere))


async def test_routes_take_urls_in_json_and_query_and_one_bad_url_of_a_list_fails_alone(open_doors, client):
    async with server({"/a.png": ok(PNG)}) as (url, _):
        in_json = await client.post("/v1/segment", json={"image": f"{url}/a.png"})
        in_query = await client.post(f"/v1/segment?image={quote(url + '/a.png', safe='')}")
    bodies = [in_json, in_query]
    assert [(answer.status_code, answer.json()["bytes"]) for answer in bodies] == [(200, len(PNG))] * 2
    missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    async with server({"/a": ok(PNG), "/b": missing}) as (url, _):
        answer = await client.post("/v1/segment", json={"images": [f"{url}/a", f"{url}/b"]})
    first, second = answer.json()["results"]
    assert first["bytes"] == len(PNG)
    assert (second["problem"]["status"], second["problem"]["field"]) == (422, "image")


async def test_private_url_is_a_422_that_names_the_field(client):
    answer = await client.post("/v1/segment", json={"image": "http://127.0.0.1:1/a"})
    assert (answer.status_code, answer.json()["field"]) == (422, "image")
    assert "not public" in answer.json()["detail"]
