"""Redis as operators have it: URL and password from files, TLS with an authority of its own, Sentinel, and full."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from fovea.errors import NotReady, StorageFull
from shared.jobs.consumer import Delivery, QueueConsumer
from shared.jobs.queue import Payload, Result
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.redis_server import RedisServer, describe_redis
from shared.jobs.tests import redis_fleet
from shared.jobs.usage_ledger import UsageLedger
from shared.settings import Settings


async def _run_one_job(settings: Settings, payload: Payload) -> bytes:
    """Accept a job, run it, and read its answer, over connections of its own."""
    assert settings.redis_url
    queue = RedisJobQueue(settings.redis_url, settings)
    inbox = QueueConsumer(settings.redis_url, payload.service, settings)
    try:
        job, _ = await queue.submit(payload)
        delivery = await inbox.take(reclaim=False)
        assert isinstance(delivery, Delivery)
        assert await inbox.succeed(delivery, Result(200, "text/plain", b"done"))
        return (await queue.result(job.id, payload.tenant)).body
    finally:
        await queue.close()
        await inbox.close()


def test_url_and_password_come_from_files_as_secrets_are_mounted(tmp_path):
    (tmp_path / "url").write_text("redis://redis:7000/2\n")
    (tmp_path / "password").write_text(f"{redis_fleet.PASSWORD}\n")
    files = {"redis_url_file": tmp_path / "url", "redis_password_file": tmp_path / "password"}
    assert Settings(**files).redis_url == "redis://:p%40ss%2Fw%3Ard@redis:7000/2"
    assert (
        Settings(redis_url="redis://me@h", redis_password=redis_fleet.PASSWORD).redis_url
        == "redis://me:p%40ss%2Fw%3Ard@h"
    )
    assert Settings(redis_url="redis://:own@h", redis_password=redis_fleet.PASSWORD).redis_url == "redis://:own@h"
    assert Settings(redis_url="redis://h", redis_ca_file=Path("/ca")).redis_url == "redis://h"
    assert Settings(redis_url="rediss://h", redis_ca_file=Path("/ca")).redis_url == "rediss://h?ssl_ca_certs=/ca"
    assert Settings().redis_url is None


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return redis_fleet.make_certificate(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def _tls_front(own: redis_fleet.Certificate, port: int) -> AsyncIterator[int]:
    """TLS in front of a server that was built without: what cloud providers put before theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _check_tls(settings: Settings, payload: Payload) -> None:
    assert await _run_one_job(settings, payload) == b"done"
    strange = Settings(redis_url=str(settings.redis_url).partition("?")[0], data_dir=settings.data_dir)
    with pytest.raises(NotReady, match="reached"):
        await _run_one_job(strange, payload)


async def test_tls_is_trusted_by_its_own_authority_alone(own_redis, own, payload, tmp_path):
    assert own_redis._port
    async with _tls_front(own, own_redis._port) as port:
        secret = {"redis_password": own_redis._password, "redis_ca_file": own.certificate}
        await _check_tls(Settings(redis_url=f"rediss://127.0.0.1:{port}", data_dir=tmp_path, **secret), payload)


@pytest.mark.release
async def test_a_server_with_tls_and_certificates_of_clients(own, payload, tmp_path):
    if (binary := redis_fleet.find_tls_server()) is None:
        pytest.skip("no Redis with TLS on PATH")
    port = redis_fleet.free_port()
    lines = [
        "port 0", f"tls-port {port}", f"tls-cert-file {own.certificate}", f"tls-key-file {own.key}",
        f"tls-ca-cert-file {own.certificate}", "tls-auth-clients yes", f'requirepass "{redis_fleet.PASSWORD}"',
    ]  # fmt: skip
    settings = Settings(
        redis_url=f"rediss://127.0.0.1:{port}", redis_password=redis_fleet.PASSWORD, data_dir=tmp_path,
        redis_ca_file=own.certificate, redis_cert_file=own.certificate, redis_key_file=own.key,
    )  # fmt: skip
    with redis_fleet.run_server(tmp_path / "server", *lines, binary=binary):
        await asyncio.to_thread(lambda: redis_fleet.wait_for(redis.Redis.from_url(str(settings.redis_url))))
        await _check_tls(settings, payload)
        assert "version" in await asyncio.to_thread(describe_redis, settings)


async def _check_ledger(url: str) -> None:
    """Write into the usage ledger, and read it over a connection of its own."""
    writer, reader, today = UsageLedger(url), UsageLedger(url), datetime.now(UTC).date()
    writer.add("alice", "m", {"tokens_in": 5})
    await writer.stop()
    (record,) = await reader.read("alice", today, today)
    assert record.tokens_in == 5
    await reader.stop()


async def test_sentinel_leads_to_the_master_also_after_it_died(payload, tmp_path):
    with redis_fleet.run_fleet(tmp_path / "fleet") as fleet:
        settings = Settings(redis_url=fleet.url, redis_password=redis_fleet.PASSWORD, data_dir=tmp_path)
        assert settings.redis_url
        given = await asyncio.to_thread(RedisServer(settings).start)
        assert redis_fleet.PASSWORD not in given.safe_url
        assert await _run_one_job(settings, payload) == b"done"
        await _check_ledger(settings.redis_url)
        queue = RedisJobQueue(settings.redis_url, settings)
        job, _ = await queue.submit(payload)
        await queue._redis.client.wait(1, 5000)
        fleet.master.kill()
        async with asyncio.timeout(90):  # for a machine that does much else
            while True:
                with contextlib.suppress(NotReady):
                    await queue.submit(replace(payload, body=b"after"))
                    break
                await asyncio.sleep(0.2)
        assert (await queue.get(job.id, payload.tenant)).status == "queued", "what was accepted is still there"
        await queue.close()


@pytest.fixture
def small_redis(tmp_path):
    with RedisServer(Settings(data_dir=tmp_path / "small", redis_max_bytes=6 * 2**20)) as server:
        yield server


async def test_a_full_redis_refuses_new_jobs_and_finishes_those_it_has(small_redis, payload, tmp_path):
    settings = Settings(data_dir=tmp_path, job_ttl_s=1)
    queue = RedisJobQueue(small_redis.url, settings)
    inbox = QueueConsumer(small_redis.url, payload.service, settings)
    large, accepted = replace(payload, body=b"x" * 300_000), []
    with pytest.raises(StorageFull) as full:  # noqa: PT012
        while len(accepted) < 100:
            accepted.append((await queue.submit(large))[0].id)
    assert full.value.status == 507
    assert "FOVEA_REDIS_MAX_BYTES" in str(full.value.hint)
    assert len(accepted) > 3
    while isinstance(delivery := await inbox.take(reclaim=True), Delivery):
        assert await inbox.renew([delivery.key]) == set()
        assert await inbox.succeed(delivery, Result(200, "text/plain", b"done"))
    for job_id in accepted:
        assert (await queue.get(job_id, payload.tenant)).status == "succeeded"
    job, _ = await queue.submit(large)
    assert job.status == "queued", "finished jobs made room"
    await queue.close()
    await inbox.close()
